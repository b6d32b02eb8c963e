"""Trust policies: whose packages a server or a command may use. What a policy does not allow is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparsehub.errors import TrustError, UsageError
from sparsehub.package.manifest import Manifest
from sparsehub.package.signing import (
    check_coverage,
    read_signature,
    verify_certificate,
    verify_key,
    verify_sigstore,
)


@dataclass(frozen=True)
class Identity:
    """A sigstore identity that a policy trusts."""

    identity: str  # mail address or URI in the certificate
    issuer: str  # URL of the OpenID Connect issuer that vouches for it


@dataclass(frozen=True)
class Policy:
    """What a package must fulfil to be used. As soon as anybody is trusted, a signature that is there must be valid.

    Raises `UsageError` where it demands signatures and trusts nobody, or names a file that does not exist.
    """

    require_signature: bool = False  # refuse unsigned packages
    trusted_keys: Mapping[str, Path] = field(default_factory=dict)  # public keys, by the publisher's name
    trusted_certificates: tuple[Path, ...] = ()  # root certificates
    trusted_identities: tuple[Identity, ...] = ()  # of sigstore
    # Which of the trusted may publish: names of keys, subjects of certificates (mail address, URI or common name),
    # identities. Empty: all of them.
    publishers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        trusts = bool(self.trusted_keys or self.trusted_certificates or self.trusted_identities)
        if (self.require_signature or self.publishers) and not trusts:
            fix = "name trusted_keys, trusted_certificates or trusted_identities"
            raise UsageError("the policy demands signatures and trusts nobody", fix=fix)
        for path in (*self.trusted_keys.values(), *self.trusted_certificates):
            if not path.is_file():
                raise UsageError("the policy trusts a file that is not there", found=str(path))

    def check(self, folder: Path, manifest: Manifest) -> str | None:
        """The publisher who signed the package in `folder`; None where it is allowed without a known publisher.

        manifest: the validated one of this folder. Raises `TrustError` for what the policy does not allow.
        """
        signature = read_signature(folder)
        if signature is None:
            if self.require_signature or self.publishers:
                fix = "sign it (sparsehub sign), or use a policy that does not demand it"
                raise TrustError(f"{manifest.name}@{manifest.version} is not signed", fix=fix)
            return None
        if not (self.trusted_keys or self.trusted_certificates or self.trusted_identities):
            return None  # with nobody trusted, no signature can be judged
        check_coverage(manifest, signature)
        publisher = self._publisher(folder, manifest, signature)
        if self.publishers and publisher not in self.publishers:
            allowed = ", ".join(self.publishers)
            raise TrustError(f"{publisher} may not publish here", found=manifest.name, expected=f"one of {allowed}")
        return publisher

    def _publisher(self, folder: Path, manifest: Manifest, signature: bytes) -> str:
        """The first of the trusted keys, identities and certificates that made the signature."""
        reasons = []
        for name, key in self.trusted_keys.items():
            try:
                verify_key(folder, signature, key)
                return name
            except TrustError as error:
                reasons.append(f"{name}: {error.found}")
        for person in self.trusted_identities:
            try:
                verify_sigstore(folder, signature, person.identity, person.issuer)
                return person.identity
            except TrustError as error:
                reasons.append(f"{person.identity}: {error.found}")
        try:
            return verify_certificate(folder, signature, self.trusted_certificates)
        except TrustError as error:
            if self.trusted_certificates:
                reasons.append(f"certificates: {error.found}")
        problem = f"{manifest.name}@{manifest.version} is signed by nobody whom the policy trusts"
        raise TrustError(problem, found="; ".join(reasons)[:600])
