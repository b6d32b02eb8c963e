"""sparsehub export: write a package in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsehub.cli.choices import one_of
from sparsehub.cli.output import show_fields, show_json
from sparsehub.cli.packages import HUB, load_reference

FORMATS = ("shira",)


def export(
    reference: Annotated[str, typer.Argument(help="A package folder, or a task reference in --hub.")],
    backbone: Annotated[str, typer.Option(help="The backbone: a folder or an id on the Hugging Face Hub.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    to: Annotated[str, one_of(FORMATS, "A PEFT adapter: sparse changes of Linear weights.", what="format")] = "shira",
    hub: Annotated[str | None, HUB] = None,
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the Hugging Face Hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write a package as a SHiRA adapter, which PEFT loads. `sparsehub extract` turns it back, exactly."""
    from sparsehub.backbone import open_checkpoint
    from sparsehub.convert.name_matching import layout_of
    from sparsehub.convert.shira import export_shira

    package, writers = load_reference(reference, hub), {"shira": export_shira}  # one for each of FORMATS
    found = writers[to](package, layout_of(open_checkpoint(backbone, revision), package.manifest.task), out)
    if as_json:
        show_json({"adapter": str(out), "r": found.rank, "entries": found.entries, "stored": found.stored})
        return
    padding = f"{found.stored - found.entries:,} zeros beside them, since PEFT gives every matrix r (rows + columns)"
    show_fields(
        f"{package.manifest.name}@{package.manifest.version} as SHiRA",
        {"adapter": out, "r": found.rank, "entries": f"{found.entries:,}; {padding}"},
    )
