"""The manifest, sparsehub.json: what a package is, in one canonical file whose sha256 is the package's digest."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsehub.delta_format import DELTA_FILE, STORED_DTYPES, VALUE_KINDS
from sparsehub.errors import FormatError, ManifestError, UsageError
from sparsehub.files import MAX_PACKAGE_JSON_BYTES, canonical_json, sha256_bytes, strict_json
from sparsehub.package.task_spec import (
    EMBEDDING,
    FORMAT_2_KINDS,
    TaskSpec,
    check_task,
    require_that,
)
from sparsehub.schema import build
from sparsehub.task_ref import DIGEST, check_task_name
from sparsehub.task_ref import check_version as check_version_text

MANIFEST_FILE = "sparsehub.json"
HEAD_FILE = "head.safetensors"
CARD_FILE = "README.md"
HEAD_METHOD = "head"  # the method of a package that has a head alone
SIGNATURE_FILE = "model.sig"
CONFIGURATION = "backbone_configuration"  # in `training`: what the backbone computed with, by field
FORMAT_VERSION = 2  # that is written; format 1 is read too
FORMATS = (1, FORMAT_VERSION)
MAX_PICTURES = 64
MAX_PARENTS = 1024
MAX_SIGNATURE_BYTES = 1 << 20
MAX_CARD_BYTES = 1 << 20
MAX_PICTURE_BYTES = 8 << 20

_LIMITS = {DELTA_FILE: 1 << 48, HEAD_FILE: 1 << 48, CARD_FILE: MAX_CARD_BYTES}  # bytes

_PICTURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.png")


@dataclass(frozen=True)
class BackboneRef:
    """The backbone checkpoint that a package belongs to, as its manifest names it."""

    id: str  # on the Hugging Face Hub, or a folder's last name
    revision: str  # commit on the Hub; empty for a folder
    architecture: str  # transformers' class name
    dtype: str  # as stored
    fingerprint: str  # digest over the checkpoint's names, shapes, dtypes and bytes
    parameters: int  # entries of all parameters, tied ones counted once


@dataclass(frozen=True)
class TouchedParameter:
    """One parameter that the delta changes."""

    shape: tuple[int, ...]
    digest: str  # of the backbone's stored tensor
    nnz: int  # changed entries


@dataclass(frozen=True)
class DeltaRecord:
    """What a manifest says of delta.safetensors."""

    method: str  # selection rule or origin of the delta: `sam`, `extracted`, ...
    density: float  # nnz / entries of the backbone
    nnz: int  # changed entries
    value_kind: str  # `add` or `set`
    value_dtype: str  # as stored, one of `STORED_DTYPES`
    parameters: dict[str, TouchedParameter]  # by name
    # First changed layer (-1: something before the layers changes too) and layers that there are; None where it is not
    # known, as in format 1.
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Parent:
    """A package that was merged into this one."""

    name: str
    version: str
    digest: str
    weight: float  # factor of its delta in the sum


@dataclass(frozen=True)
class Lineage:
    """What a package was made of, where it was not trained from the backbone alone."""

    parents: tuple[Parent, ...] = ()  # the packages that were merged
    checkpoint: str = ""  # the fine-tuned model or adapter that it was extracted from, as its user named it
    checkpoint_digest: str = ""  # of that model's or adapter's bytes


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says of another file of the package."""

    size: int  # bytes
    sha256: str  # sha256:<hex>


@dataclass(frozen=True)
class Manifest:
    """The whole of sparsehub.json."""

    format_version: int
    name: str
    version: str
    task: TaskSpec
    backbone: BackboneRef
    delta: DeltaRecord | None  # None where nothing in the backbone changes
    files: dict[str, FileRecord]  # every other file of the package, by name
    training: dict[str, Any] = field(default_factory=dict)  # what it was trained on and how, by setting
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # by split, of the package as written
    license: str = ""  # empty where none is stated
    lineage: Lineage = Lineage()

    def to_bytes(self) -> bytes:
        """The canonical bytes; their sha256 is the package digest. Raises `ManifestError` for NaN and infinities."""
        try:
            return canonical_json(_document(self))
        except FormatError as error:
            raise ManifestError(f"{MANIFEST_FILE} cannot be written", found=str(error)) from error

    @property
    def touched(self) -> dict[str, TouchedParameter]:
        """The parameters that the delta changes, by name."""
        return self.delta.parameters if self.delta is not None else {}

    @property
    def nnz(self) -> int:
        """Changed entries."""
        return self.delta.nnz if self.delta is not None else 0

    @property
    def density(self) -> float:
        """Changed entries / entries of the backbone."""
        return self.delta.density if self.delta is not None else 0.0

    @property
    def value_dtype(self) -> str:
        """How the delta's values are stored; empty where there is none."""
        return self.delta.value_dtype if self.delta is not None else ""

    @property
    def method(self) -> str:
        """How the delta came to be; `head` where there is none."""
        return self.delta.method if self.delta is not None else HEAD_METHOD

    @property
    def backbone_configuration(self) -> Mapping[str, Any]:
        """What the backbone's configuration said of its forward pass; empty where nobody noted it."""
        stated = self.training.get(CONFIGURATION)
        return stated if isinstance(stated, dict) else {}

    @property
    def training_stated(self) -> dict[str, Any]:
        """`training` without the settings that are empty."""
        return {name: value for name, value in self.training.items() if value not in ("", None, [], {})}

    @functools.cached_property
    def digest(self) -> str:
        """The package's digest: `sha256:` and the hash of `to_bytes`."""
        return sha256_bytes(self.to_bytes())


def _document(manifest: Manifest) -> dict[str, Any]:
    """The manifest as the JSON object of its format version."""
    table, task = _fields(manifest), _fields(manifest.task)
    task["head"] = {name: value for name, value in vars(manifest.task.head).items() if value is not None}
    if not manifest.task.thresholds:
        del task["thresholds"]
    if manifest.format_version == 1:
        del task["head"]
        table["delta"] = {k: v for k, v in vars(manifest.delta).items() if k != "layers"} if manifest.delta else None
    return {**table, "task": task}


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass's fields by name, without what is kept beside them once it was asked for."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def parse_manifest(data: bytes) -> Manifest:
    """Parse and validate a manifest; raises `ManifestError`. Only the canonical byte string is accepted."""
    try:
        table = strict_json(data, MANIFEST_FILE, MAX_PACKAGE_JSON_BYTES)
    except FormatError as error:
        raise ManifestError(str(error)) from error
    if isinstance(table, dict) and table.get("format_version") not in FORMATS:
        raise ManifestError(
            "this package has another format version",
            found=table.get("format_version"),
            expected=" or ".join(map(str, FORMATS)),
            fix="install the version of sparsehub that wrote it, or a newer one",
        )
    manifest = build(Manifest, table, MANIFEST_FILE, ManifestError)
    if manifest.to_bytes() != data:
        raise ManifestError(
            f"{MANIFEST_FILE} is not in canonical form", fix="fetch the package again; never edit it by hand"
        )
    check_manifest(manifest)
    vars(manifest)["digest"] = sha256_bytes(data)  # known already: these are its bytes
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Validate what the types cannot express: names, digests, limits, sums; raises `ManifestError`."""
    check_name(manifest.name)
    check_version(manifest.version)
    require_that(manifest.format_version in FORMATS, f"unknown format version {manifest.format_version}")
    require_that(manifest.delta is not None or manifest.format_version > 1, "format 1 has no packages without a delta")
    check_task(manifest.task)
    known = manifest.format_version > 1 or manifest.task.kind not in FORMAT_2_KINDS
    require_that(known, f"format 1 has no {manifest.task.kind}")
    _check_delta(manifest)
    _check_lineage(manifest.lineage)
    for name, record in manifest.files.items():
        if name in (MANIFEST_FILE, SIGNATURE_FILE) or not is_allowed_file(name):
            raise ManifestError(
                "the manifest names a file that a package may not hold",
                found=name[:200],
                expected=f"{DELTA_FILE}, {HEAD_FILE}, {CARD_FILE} or *.png",
            )
        require_that(record.size >= 0 and DIGEST.fullmatch(record.sha256), f"the record of {name} is malformed")
        require_that(record.size <= _LIMITS.get(name, MAX_PICTURE_BYTES), f"{name} is larger than a package may hold")
    require_that(len(manifest.files) <= MAX_PICTURES + 3, "the manifest names too many files")
    if manifest.delta is None:
        require_that(DELTA_FILE not in manifest.files, f"the manifest has no delta and names {DELTA_FILE}")
        alone = HEAD_FILE in manifest.files or manifest.task.kind == EMBEDDING
        require_that(alone, "a package without a delta needs a head")
    else:
        require_that(DELTA_FILE in manifest.files, f"the manifest does not name {DELTA_FILE}")


def is_allowed_file(name: str) -> bool:
    """Whether a package may hold a file of this name: nothing hidden, in a folder or executable is allowed."""
    return name in (MANIFEST_FILE, DELTA_FILE, HEAD_FILE, CARD_FILE, SIGNATURE_FILE) or bool(_PICTURE.fullmatch(name))


def check_name(name: str) -> None:
    """Raises `ManifestError` unless `name` can name a task."""
    _reraised(check_task_name, name)


def check_version(version: str) -> None:
    """Raises `ManifestError` unless `version` can name a version."""
    _reraised(check_version_text, version)


def _reraised(check: Callable[[str], None], text: str) -> None:
    try:
        check(text)
    except UsageError as error:
        raise ManifestError(error.problem, found=error.found, expected=error.expected) from error


def _check_delta(manifest: Manifest) -> None:
    delta = manifest.delta
    require_that(bool(DIGEST.fullmatch(manifest.backbone.fingerprint)), "the backbone's fingerprint is malformed")
    if delta is None:
        return
    require_that(delta.value_kind in VALUE_KINDS, f"unknown value kind {delta.value_kind!r}")
    require_that(delta.value_dtype in STORED_DTYPES, f"unknown value dtype {delta.value_dtype!r}")
    require_that((delta.value_kind, delta.value_dtype) != ("set", "int8"), "`set` values are exact and cannot be int8")
    if delta.layers is not None:
        require_that(len(delta.layers) == 2, "layers are the first changed one and their number")
        first, count = delta.layers
        require_that(-1 <= first <= count <= 1 << 20, "the first changed layer is none of the layers")
    require_that(bool(delta.parameters), "the delta changes no parameter")
    for name, touched in delta.parameters.items():
        require_that(bool(DIGEST.fullmatch(touched.digest)), f"the digest of {name!r} is malformed")
        require_that(
            len(touched.shape) <= 8 and all(0 < n <= 1 << 40 for n in touched.shape), f"{name!r}: absurd shape"
        )
        require_that(touched.nnz > 0, f"{name!r} is named but has no entries")
        require_that(touched.nnz <= math.prod(touched.shape), f"{name!r} changes more entries than it has")
    require_that(delta.nnz == sum(t.nnz for t in delta.parameters.values()), "nnz is not the sum over the parameters")
    require_that(delta.nnz <= manifest.backbone.parameters, "the delta changes more entries than the backbone has")
    require_that(delta.density == delta.nnz / manifest.backbone.parameters, "density is not nnz / parameters")


def _check_lineage(lineage: Lineage) -> None:
    for parent in lineage.parents:
        check_name(parent.name)
        check_version(parent.version)
        require_that(DIGEST.fullmatch(parent.digest), f"the digest of the parent {parent.name} is malformed")
    digest = lineage.checkpoint_digest
    require_that(not digest or DIGEST.fullmatch(digest), "the digest of the checkpoint it came from is malformed")
    require_that(bool(lineage.checkpoint) == bool(digest), "a checkpoint that it came from needs a name and a digest")
    require_that(len(lineage.parents) <= MAX_PARENTS, "the manifest names too many parents")
