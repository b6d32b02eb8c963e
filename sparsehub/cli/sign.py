"""sparsehub sign: sign a package."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsehub.cli.output import show_fields, show_json
from sparsehub.cli.packages import HUB_VARIABLE, hub_of_environment
from sparsehub.errors import UsageError

if TYPE_CHECKING:
    from sparsehub.package import Manifest
    from sparsehub.package.signing import Signer

PASSWORD = "SIGNING_KEY_PASSWORD"  # the environment variable: a password on a command line is seen by all


def sign(
    package: Annotated[str, typer.Argument(help="A package folder, or a task reference in --hub.")],
    hub: Annotated[
        str | None,
        typer.Option(
            help="The hub of the reference: the signature is published there "
            f"(default: {HUB_VARIABLE}, where PACKAGE is no package folder)."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help=f"A private key (PEM, elliptic curve); its password is read from ${PASSWORD}.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="The certificate of that key (PEM).")] = None,
    chain: Annotated[
        list[Path] | None, typer.Option(help="An intermediate certificate (PEM); may be repeated.")
    ] = None,
    sigstore: Annotated[
        bool, typer.Option("--sigstore", help="Sign through sigstore, which needs the network.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Sign a package in the format of OpenSSF model signing, with a key, a certificate or sigstore."""
    from sparsehub.package.manifest import MANIFEST_FILE
    from sparsehub.package.signing import sign_package

    signer = _signer(key, certificate, tuple(chain or ()), sigstore)
    if hub is None and not (Path(package) / MANIFEST_FILE).is_file():
        hub = hub_of_environment()
    if hub is None:
        manifest = sign_package(Path(package), signer)
    else:
        manifest = _sign_published(package, hub, signer)
    if as_json:
        show_json({"name": manifest.name, "version": manifest.version, "digest": manifest.digest, "hub": hub})
        return
    where = {"hub": hub} if hub else {"package": package}
    show_fields(f"signed {manifest.name}@{manifest.version}", {**where, "digest": manifest.digest})


def _signer(key: Path | None, certificate: Path | None, chain: tuple[Path, ...], sigstore: bool) -> Signer:
    import os

    from sparsehub.package.signing import CertificateSigner, KeySigner, SigstoreSigner

    if (key is None) != sigstore:
        raise UsageError("sign with a key or through sigstore", expected="--key FILE or --sigstore")
    if key is None:
        return SigstoreSigner()
    if certificate is not None:
        return CertificateSigner(key, certificate, chain)
    if chain:
        raise UsageError("a chain without a certificate", fix="give --certificate")
    return KeySigner(key, os.environ.get(PASSWORD))


def _sign_published(reference: str, hub: str, signer: Signer) -> Manifest:
    from sparsehub.cli.packages import open_location
    from sparsehub.cli.transfers import transfer
    from sparsehub.hub.package_loader import pull
    from sparsehub.package.policy import Policy
    from sparsehub.package.signing import read_signature, sign_package

    home = open_location(hub)
    with tempfile.TemporaryDirectory(prefix="sparsehub-sign-") as folder, transfer(f"fetching {reference}") as report:
        copy = Path(folder) / "package"
        pulled = pull(reference, home, out=copy, policy=Policy(), progress=report)
        manifest, signature = sign_package(copy, signer), read_signature(copy)
        assert signature is not None, "it was just written"
        home.attach(pulled.resolved, signature)
    return manifest
