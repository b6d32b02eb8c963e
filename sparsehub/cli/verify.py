"""sparsehub verify: prove every byte of a package, and that it fits a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsehub.cli.output import console, progress, show_json


def verify(
    package: Annotated[Path, typer.Argument(help="A package folder.")],
    backbone: Annotated[str | None, typer.Option(help="Also prove that it was made for these weights.")] = None,
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Prove sizes, hashes, indices, values and names of a package; exit code 2 where anything is wrong."""
    from sparsehub.package import read_package
    from sparsehub.package.io import check_backbone

    read = read_package(package)
    if backbone is not None:
        from sparsehub.backbone import load_backbone

        progress(f"loading {backbone}")
        check_backbone(read.manifest, load_backbone(backbone, revision=revision))
    if as_json:
        show_json({"valid": True, "digest": read.digest, "backbone": backbone})
        return
    console.print(f"[green]valid[/] {read.digest}" + (f", and made for {backbone}" if backbone else ""))
