"""sparsehub verify: check every byte of a package, its signature, and that it fits a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsehub.cli.output import console, show_json
from sparsehub.cli.packages import HUB, POLICY


def verify(
    package: Annotated[str, typer.Argument(help="A package folder, or a task reference in --hub.")],
    hub: Annotated[str | None, HUB] = None,
    backbone: Annotated[str | None, typer.Option(help="Also check that it was made for this backbone.")] = None,
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the hub.")] = None,
    policy: Annotated[Path | None, typer.Option(help=POLICY)] = None,
    key: Annotated[Path | None, typer.Option(help="Also require a signature by this public key (PEM).")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Also require a signature under this root certificate (PEM).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Verify sizes, hashes, indices, values, names and signature of a package; exit code 2 if anything is wrong."""
    from sparsehub.cli.packages import policy_of, with_package
    from sparsehub.package import validate_package
    from sparsehub.package.policy import Policy

    allowed = policy_of(policy, key, certificate)

    def check(folder: Path) -> tuple[str, str | None]:
        manifest = validate_package(folder)
        publisher = allowed.check(folder, manifest)
        if backbone is not None:
            _check_backbone(folder, backbone, revision)
        return manifest.digest, publisher

    # The policy is checked after the bytes, so that a damaged package is not reported as badly signed.
    digest, publisher = with_package(package, hub, check, Policy())
    if as_json:
        show_json({"valid": True, "digest": digest, "publisher": publisher, "backbone": backbone})
        return
    signed = f", signed by {publisher}" if publisher else ""
    made = f", and made for {backbone}" if backbone else ""
    console.print(f"[green]valid[/] {digest}{signed}{made}")


def _check_backbone(folder: Path, backbone: str, revision: str | None) -> None:
    from sparsehub.backbone import load_backbone
    from sparsehub.package import read_manifest
    from sparsehub.package.reader import check_backbone

    check_backbone(read_manifest(folder), load_backbone(backbone, revision=revision))
