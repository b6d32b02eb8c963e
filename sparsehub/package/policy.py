"""Whose packages may be used. A policy says no wherever it cannot say yes."""

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
    """Somebody whom an OpenID Connect issuer vouches for, through sigstore."""

    identity: str
    issuer: str


@dataclass(frozen=True)
class Policy:
    """What a package needs to be used.

    require_signature: an unsigned package is refused. A signed one must hold wherever anybody is trusted.
    trusted_keys: by the name of the publisher who holds each. trusted_certificates: roots. trusted_identities: of
    sigstore.
    publishers: who of these may publish, all where it is empty: names of keys, subjects of certificates (mail address,
    URI or common name), identities.
    """

    require_signature: bool = False
    trusted_keys: Mapping[str, Path] = field(default_factory=dict)
    trusted_certificates: tuple[Path, ...] = ()
    trusted_identities: tuple[Identity, ...] = ()
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
        """The publisher who signed the package in `folder`, None for an unsigned one that is allowed.

        manifest: as it was proved. Raises `TrustError` for whatever the policy does not allow.
        """
        signature = read_signature(folder)
        if signature is None:
            if self.require_signature or self.publishers:
                fix = "sign it (sparsehub sign), or use a policy that does not demand it"
                raise TrustError(f"{manifest.name}@{manifest.version} is not signed", fix=fix)
            return None
        if not (self.trusted_keys or self.trusted_certificates or self.trusted_identities):
            return None  # a policy that trusts nobody by name can neither believe nor doubt a signature
        check_coverage(manifest, signature)
        publisher = self._publisher(folder, manifest, signature)
        if self.publishers and publisher not in self.publishers:
            allowed = ", ".join(self.publishers)
            raise TrustError(f"{publisher} may not publish here", found=manifest.name, expected=f"one of {allowed}")
        return publisher

    def _publisher(self, folder: Path, manifest: Manifest, signature: bytes) -> str:
        """Who signed, of all who are trusted."""
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
