"""Signs packages and verifies signatures, in OpenSSF's model-signing format by its own library."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsehub.errors import FormatError, TrustError, UsageError
from sparsehub.extras import require
from sparsehub.files import strict_json, write_file
from sparsehub.package.manifest import MANIFEST_FILE, MAX_SIGNATURE_BYTES, SIGNATURE_FILE, Manifest
from sparsehub.package.validation import read_bounded, validate_package
from sparsehub.progress import work

EXTRA = "sign"


@dataclass(frozen=True)
class KeySigner:
    """Signs with an elliptic curve key."""

    private_key: Path  # PEM file; P-256, P-384 or P-521
    password: str | None = None  # of the key; None where it has none


@dataclass(frozen=True)
class CertificateSigner:
    """Signs with a key that has a certificate."""

    private_key: Path  # PEM file
    certificate: Path  # of this key
    chain: tuple[Path, ...] = ()  # certificates between that one and a root that verifiers trust


@dataclass(frozen=True)
class SigstoreSigner:
    """Signs through sigstore's public service, which needs the network."""

    identity_token: str | None = None  # of OpenID Connect; None opens a browser


Signer = KeySigner | CertificateSigner | SigstoreSigner


def sign_package(folder: Path, signer: Signer) -> Manifest:
    """Validate a package and write its model.sig, in place of one that is there.

    Raises `FormatError` for an unsound package, and `UsageError` where the signer cannot sign.
    """
    manifest = validate_package(folder)
    signing: Any = require("model_signing.signing", EXTRA)
    descriptor, name = tempfile.mkstemp(prefix="sparsehub-sign-")
    os.close(descriptor)
    try:
        with work(f"signing {manifest.name}@{manifest.version}"):
            _configured(signing.Config(), signer).set_hashing_config(_hashing()).sign(folder, Path(name))
        signature = Path(name).read_bytes()
    except Exception as error:  # keys, certificates and the network fail in the ways of four libraries
        raise UsageError("the package cannot be signed", found=_reason(error), fix=_hint(signer)) from error
    finally:
        Path(name).unlink()
    check_coverage(manifest, signature)
    write_file(folder / SIGNATURE_FILE, signature)
    return manifest


def verify_key(folder: Path, signature: bytes, public_key: Path) -> None:
    """Verify that the holder of a key signed the files of a folder; raises `TrustError`."""
    _verify(folder, signature, lambda config: config.use_elliptic_key_verifier(public_key=public_key))


def verify_certificate(folder: Path, signature: bytes, roots: Sequence[Path]) -> str:
    """Verify that a certificate under one of the roots signed the files of a folder; raises `TrustError`.

    Returns the certificate's subject: a mail address, a URI or a common name.
    """
    if not roots:  # the library would trust every root of the operating system
        raise TrustError("no root certificate is trusted")
    _verify(folder, signature, lambda config: config.use_certificate_verifier(certificate_chain=list(roots)))
    return _subject(signature)


def verify_sigstore(folder: Path, signature: bytes, identity: str, issuer: str) -> None:
    """Verify by sigstore that `identity`, vouched for by `issuer`, signed the files of a folder.

    Raises `TrustError`.
    """
    _verify(folder, signature, lambda config: config.use_sigstore_verifier(identity=identity, oidc_issuer=issuer))


def check_coverage(manifest: Manifest, signature: bytes) -> None:
    """Verify that a signature covers exactly the files of this package; raises `TrustError`.

    The library accepts a signature that leaves files out, so what was signed is compared with the manifest.
    """
    expected = {name: record.sha256.removeprefix("sha256:") for name, record in manifest.files.items()}
    expected[MANIFEST_FILE] = manifest.digest.removeprefix("sha256:")
    try:
        payload = strict_json(base64.b64decode(_envelope(signature)["payload"]), "what was signed")
        resources = payload["predicate"]["resources"]
        found = {item["name"]: item["digest"] for item in resources if item["algorithm"] == "sha256"}
        repeated = len(found) != len(resources)
    except (FormatError, KeyError, TypeError, binascii.Error) as error:
        raise TrustError(f"{SIGNATURE_FILE} cannot be read", found=_reason(error)) from error
    if repeated or found != expected:
        differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise TrustError(
            f"{SIGNATURE_FILE} is of another package", found=", ".join(differing)[:300] or "repeated names"
        )


def read_signature(folder: Path) -> bytes | None:
    """The bytes of a package's signature; None where it has none.

    Raises `TrustError` where model.sig is not a regular file, or too large.
    """
    try:
        return read_bounded(folder, SIGNATURE_FILE, MAX_SIGNATURE_BYTES, TrustError)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustError(f"{SIGNATURE_FILE} is no plain file", found=str(error)) from error


def _verify(folder: Path, signature: bytes, configure: Any) -> None:
    verifying: Any = require("model_signing.verifying", EXTRA)
    with _as_file(signature) as path, contextlib.redirect_stdout(sys.stderr):  # the library prints its warnings
        try:
            configure(verifying.Config()).set_hashing_config(_hashing()).verify(folder, path)
        except Exception as error:  # a signature that cannot be verified, for whatever reason, is refused
            raise TrustError("the signature does not hold", found=_reason(error)) from error


def _configured(config: Any, signer: Signer) -> Any:
    if isinstance(signer, KeySigner):
        password = None if signer.password is None else signer.password.encode()
        return config.use_elliptic_key_signer(private_key=signer.private_key, password=password)
    if isinstance(signer, CertificateSigner):
        return config.use_certificate_signer(
            private_key=signer.private_key,
            signing_certificate=signer.certificate,
            certificate_chain=list(signer.chain) or [signer.certificate],  # the library takes no empty chain
        )
    return config.use_sigstore_signer(identity_token=signer.identity_token)


def _hashing() -> Any:
    hashing: Any = require("model_signing.hashing", EXTRA)
    files = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return files.set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _envelope(signature: bytes) -> Any:
    return strict_json(signature, SIGNATURE_FILE, MAX_SIGNATURE_BYTES)["dsseEnvelope"]


def _subject(signature: bytes) -> str:
    """The subject of the signing certificate: the first mail address or URI that it names, or its common name."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    chain = strict_json(signature, SIGNATURE_FILE)["verificationMaterial"]["x509CertificateChain"]["certificates"]
    certificate = x509.load_der_x509_certificate(base64.b64decode(chain[0]["rawBytes"]))
    with contextlib.suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [
            *names.get_values_for_type(x509.RFC822Name),
            *names.get_values_for_type(x509.UniformResourceIdentifier),
        ]
        if found:
            return str(found[0])
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else certificate.subject.rfc4514_string()


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """A temporary file with these bytes, for the library, which reads signatures from files only."""
    with tempfile.NamedTemporaryFile(prefix="sparsehub-signature-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if type(error).__name__ == "TUFError":  # the library's error where it cannot fetch sigstore's roots of trust
        return f"sigstore cannot be reached, which needs the network ({text})"[:300]
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def _hint(signer: Signer) -> str:
    if isinstance(signer, SigstoreSigner):
        return "sigstore needs the network and a login; a key or a certificate does not"
    return "give PEM files: an elliptic curve key, and the certificate of that very key"
