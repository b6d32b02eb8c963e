"""The API keys of an endpoint, and the key file, which stores only their hashes: reading it lets nobody in.

A key is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess that a slow hash would slow down.
"""

from __future__ import annotations

import dataclasses
import hmac
import re
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsehub.errors import FormatError, UsageError
from sparsehub.files import canonical_json, sha256_bytes, strict_json
from sparsehub.hub.documents import Document, change
from sparsehub.schema import build, unknown_name

PREDICT, WATCH, ADMIN = "predict", "watch", "admin"
ROLES = {
    PREDICT: frozenset({PREDICT}),
    WATCH: frozenset({WATCH}),
    ADMIN: frozenset({PREDICT, WATCH, ADMIN}),
}
"""What each role may do. predict: use tasks; watch: read metrics and state; admin: both, and change what is served."""
PREFIX = "sk-"
MAX_KEY_FILE_BYTES = 4 << 20
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """A key as it is stored."""

    name: str  # in logs and on the command line
    sha256: str  # of the secret
    role: str = PREDICT
    tasks: tuple[str, ...] = ("*",)  # names or patterns (`support-*`) that it may use; `backbone`: the plain backbone
    requests_per_second: float | None = None  # rate limit of each replica; None for none
    tokens_per_second: float | None = None  # the same
    weight: float = 1.0  # its share of a busy machine is this over the weights of all keys that ask

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                "a key's name is a short word", found=repr(self.name)[:100], expected="letters, digits, ._-"
            )
        if not _HASH.fullmatch(self.sha256):
            raise UsageError(f"the key {self.name} has no hash", expected="sha256:<64 hex digits>")
        if self.role not in ROLES:
            raise UsageError("unknown role", found=self.role[:100], expected=", ".join(ROLES))
        for rate in (self.requests_per_second, self.tokens_per_second):
            if rate is not None and rate <= 0:
                raise UsageError(f"a rate of the key {self.name} is not above 0", found=rate)
        if not LEAST_WEIGHT <= self.weight <= MOST_WEIGHT:
            expected = f"{LEAST_WEIGHT} to {MOST_WEIGHT}"
            raise UsageError(f"the weight of the key {self.name} is out of range", found=self.weight, expected=expected)


@dataclass(frozen=True)
class KeyRing:
    """All keys of an endpoint."""

    keys: tuple[Key, ...] = ()

    def __post_init__(self) -> None:
        for what in ("name", "sha256"):
            (twice, count), *_ = Counter(getattr(key, what) for key in self.keys).most_common(1) or [("", 0)]
            if count > 1:
                raise UsageError(f"two keys have the same {what}", found=twice)

    def find(self, secret: str) -> Key | None:
        """The key with this secret; None for an unknown one. All stored hashes are compared, each in constant time, so
        that the time it takes tells nothing about a guess."""
        presented = sha256_bytes(secret.encode(errors="surrogateescape"))
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, presented):
                found = key
        return found

    def with_key(self, key: Key) -> KeyRing:
        """This ring with one more key; raises `UsageError` where the name is taken."""
        return KeyRing((*self.keys, key))

    def without(self, name: str) -> KeyRing:
        """This ring without the key of that name; raises `UsageError` where there is none."""
        if all(key.name != name for key in self.keys):
            raise UsageError(unknown_name("key", name, [key.name for key in self.keys]))
        return KeyRing(tuple(key for key in self.keys if key.name != name))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_json())


def parse_keys(data: bytes) -> KeyRing:
    """Parse a key file; raises `UsageError` for anything that is not exactly one."""
    try:
        return build(KeyRing, strict_json(data, "the key file", MAX_KEY_FILE_BYTES), "the key file", UsageError)
    except FormatError as error:
        raise UsageError(str(error)) from error


def change_keys(document: Document, edit: Callable[[KeyRing], KeyRing]) -> None:
    """Change the key ring in a document by compare-and-swap; raises what `edit` raises, and `ConflictError`."""
    change(document, lambda data: edit(KeyRing() if data is None else parse_keys(data)).to_bytes())


def new_secret() -> str:
    """A new random key to hand out; only its hash is stored."""
    return PREFIX + secrets.token_urlsafe(32)
