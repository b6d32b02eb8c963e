"""The user's settings for every hub: whose packages to trust, and how large the cache may be.

The file is $XDG_CONFIG_HOME/sparsehub/hub.yaml (~/.config/sparsehub/hub.yaml). Without it every valid package may be
used and the cache holds ten gibibytes; while it is malformed, no package may be used. $SPARSEHUB_POLICY names a file
with a policy alone, which then replaces the one in the settings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sparsehub.errors import UsageError
from sparsehub.hub.cache import LIMIT
from sparsehub.schema import build

if TYPE_CHECKING:
    from sparsehub.package.policy import Policy


@dataclass(frozen=True)
class _Identity:
    identity: str
    issuer: str


@dataclass(frozen=True)
class PolicyFile:
    """A policy as it is written in YAML; paths are relative to its file."""

    require_signature: bool = False
    trusted_keys: dict[str, str] = field(default_factory=dict)
    trusted_certificates: tuple[str, ...] = ()
    trusted_identities: tuple[_Identity, ...] = ()
    publishers: tuple[str, ...] = ()


@dataclass(frozen=True)
class UserSettings:
    """The contents of hub.yaml."""

    cache_bytes: int = LIMIT  # the most that the cache may hold
    policy: PolicyFile = PolicyFile()


def settings_file() -> Path:
    """The path of the settings, whether the file exists or not."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "sparsehub" / "hub.yaml"


def read_settings() -> UserSettings:
    """The user's settings; raises `UsageError` where the file is malformed."""
    path = settings_file()
    if not path.exists():
        return UserSettings()
    settings = build(UserSettings, _yaml(path), str(path), UsageError)
    if settings.cache_bytes < 0:
        raise UsageError(f"{path}: cache_bytes is a number of bytes", found=settings.cache_bytes)
    return settings


def read_policy(path: Path | None = None) -> Policy:
    """The policy in a file: the one given, else $SPARSEHUB_POLICY, else the user's settings; raises `UsageError`."""
    from sparsehub.package.policy import Identity, Policy

    if path is None and (named := os.environ.get("SPARSEHUB_POLICY")):
        path = Path(named).expanduser()
    written = read_settings().policy if path is None else build(PolicyFile, _yaml(path), str(path), UsageError)
    folder = (path or settings_file()).parent
    return Policy(
        written.require_signature,
        {name: folder / Path(key).expanduser() for name, key in written.trusted_keys.items()},
        tuple(folder / Path(certificate).expanduser() for certificate in written.trusted_certificates),
        tuple(Identity(person.identity, person.issuer) for person in written.trusted_identities),
        written.publishers,
    )


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())[:300]
        raise UsageError(f"{path} cannot be read", found=problem, fix="correct it or remove it") from error
