"""sparsehub materialize: write a package as a plain transformers checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsehub.cli.choices import one_of
from sparsehub.cli.output import progress, show_fields, show_json
from sparsehub.cli.packages import HUB, load_reference

DTYPES = ("float32", "float16", "bfloat16")


def materialize(
    reference: Annotated[str, typer.Argument(help="A package folder, or a task reference in --hub.")],
    backbone: Annotated[str, typer.Option(help="The backbone: a folder or an id on the Hugging Face Hub.")],
    out: Annotated[Path, typer.Option(help="The checkpoint folder to write.")],
    hub: Annotated[str | None, HUB] = None,
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the Hugging Face Hub.")] = None,
    dtype: Annotated[
        str | None, one_of(DTYPES, "Of the stored weights (default: the one in which the package is exact).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write the task's whole model, which AutoModelFor... loads without sparsehub."""
    from sparsehub.backbone import open_checkpoint
    from sparsehub.package.materialize import materialize as write
    from sparsehub.package.materialize import native_dtype

    package = load_reference(reference, hub)
    dtype = dtype or native_dtype(package)
    progress(f"materialising {package.manifest.name}@{package.manifest.version} in {dtype}")
    write(package, open_checkpoint(backbone, revision), out, dtype=dtype)
    if as_json:
        show_json({"checkpoint": str(out), "digest": package.digest, "dtype": dtype})
        return
    show_fields(f"{package.manifest.name}@{package.manifest.version}", {"checkpoint": out, "digest": package.digest})
