"""Atomic files, sha256 digests and strict, canonical JSON, for everything that is stored."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsehub.errors import FormatError, UsageError

CHUNK = 1 << 20
MAX_JSON_BYTES = 64 << 20
MAX_PACKAGE_JSON_BYTES = 8 << 20
MAX_JSON_DEPTH = 32
_BYTES_PER_VALUE = 16  # on average at least, or a small file would fill the memory with small objects
TEMPORARY_PREFIX = ".sparsehub-tmp-"


def at_home(text: str) -> str:
    """A path as a setting or a flag gives it: `~` is the user's home there as in a shell, which leaves `--out=~/x` and
    what stands in quotes, in a file or in a variable as it is."""
    return str(Path.home()) + text[1:] if text == "~" or text.startswith("~/") else text


def cache_root() -> Path:
    """The cache folder: $SPARSEHUB_CACHE, or ~/.cache/sparsehub. Everything in it can be made again."""
    return Path(at_home(os.environ.get("SPARSEHUB_CACHE", "")) or Path.home() / ".cache" / "sparsehub")


def sha256_bytes(data: bytes | bytearray) -> str:
    """The digest of `data`: `sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The digest of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The canonical JSON of a value: sorted keys, UTF-8, no spaces. A dataclass is the object of its fields.

    Raises `FormatError` for what JSON or UTF-8 cannot hold: NaN, infinities, half of a surrogate pair.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_fields
        )
        return text.encode("utf-8")
    except ValueError as error:
        raise FormatError("a value that JSON cannot hold", found=str(error)) from error


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise FormatError("a JSON object names a key twice", found=twice[:200])
    return result


def _no_constant(text: str) -> Any:
    raise FormatError("JSON holds a number that is not finite", found=text)


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _no_constant(text)


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        nested = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for children in nested for child in children]
    return not any(isinstance(item, dict | list) for item in level)


# What Git puts in a file's place where Git LFS was not installed when a repository was cloned.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_FIX = "run `git lfs install` and `git lfs pull` in its repository, or download the file itself"


def strict_json(data: bytes, what: str, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON that refuses duplicate keys, NaN, infinities, bad UTF-8 and deep nesting.

    limit: of bytes; at most one comma or opening bracket for each 16 of them is allowed.
    """
    if data.startswith(LFS_POINTER):
        raise FormatError(f"{what} is a Git LFS pointer, not the file itself", fix=LFS_FIX)
    if len(data) > limit:
        raise FormatError(f"{what} is too large", found=f"{len(data)} bytes", expected=f"at most {limit}")
    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > limit // _BYTES_PER_VALUE:
        raise FormatError(
            f"{what} holds too many values", found=values, expected=f"at most {limit // _BYTES_PER_VALUE}"
        )
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more than 4,300 digits
        raise FormatError(f"{what} is not valid JSON", found=str(error)) from error
    if not _is_shallow(value):
        raise FormatError(f"{what} is nested too deeply", expected=f"at most {MAX_JSON_DEPTH} levels")
    return value


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader sees the old bytes or the new ones, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync(path.parent)


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} exists already", fix="choose another folder or remove this one")


def _rename(folder: Path, path: Path) -> None:
    try:
        folder.rename(path)
    except OSError as error:
        raise _exists(path) if os.path.lexists(path) else error from None


def refuse_existing(path: Path) -> None:
    """Raises `UsageError` where something has the name that `new_folder` is to give; asked before long work."""
    if os.path.lexists(path):
        raise _exists(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears whole under its name when the block ends, or not at all when it raises.

    Raises `UsageError` where something is there already: nothing is ever overwritten.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        for child in sorted(temporary.rglob("*")):
            fsync(child)
        fsync(temporary)
        _rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(path.parent)
