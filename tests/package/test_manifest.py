from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsehub.errors import ManifestError
from sparsehub.files import canonical_json, sha256_bytes
from sparsehub.package.manifest import Lineage, Manifest, Parent, is_allowed_file, parse_manifest

GOLDEN = Path(__file__).parents[1] / "golden" / "package" / "sparsehub.json"
DIGEST = "sha256:" + "a" * 64
Spoil = Callable[[dict[str, Any]], object]


@pytest.fixture
def table() -> dict[str, Any]:
    """The golden manifest as plain objects, to be spoilt."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture
def manifest() -> Manifest:
    return parse_manifest(GOLDEN.read_bytes())


def put(path: str, value: Any) -> Spoil:
    """Set the value at a path like `task.labels`."""

    def spoil(table: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            table = table[parent]
        table[last] = value

    return spoil


def parent(**changes: Any) -> dict[str, Any]:
    return {"name": "topic", "version": "1.0.0", "digest": DIGEST, "weight": 0.5, **changes}


def drop(path: str) -> Spoil:
    def spoil(table: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            table = table[parent]
        del table[last]

    return spoil


def test_a_manifest_comes_back_from_its_bytes(manifest: Manifest) -> None:
    assert parse_manifest(manifest.to_bytes()) == manifest
    assert manifest.to_bytes() == GOLDEN.read_bytes()


def test_a_manifest_keeps_what_the_package_was_made_of(manifest: Manifest) -> None:
    lineage = Lineage((Parent("topic", "1.0.0", DIGEST, 0.5), Parent("tone", "2", DIGEST, -1.0)), "owner/tuned", DIGEST)
    merged = dataclasses.replace(manifest, lineage=lineage)
    assert parse_manifest(merged.to_bytes()).lineage == lineage
    assert merged.digest != manifest.digest


def test_the_package_digest_is_that_of_the_file(manifest: Manifest) -> None:
    assert manifest.digest == sha256_bytes(GOLDEN.read_bytes())


def test_another_name_is_another_digest(manifest: Manifest) -> None:
    assert dataclasses.replace(manifest, name="other").digest != manifest.digest


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put("format_version", 3), "another format version; found: 3; expected: 1 or 2; to do: install"),
        (put("format_version", 0), "another format version"),
        (put("format_version", "1"), "another format version"),
        (put("format_version", None), "another format version"),
        (put("format_version", True), "format_version has the wrong type"),
        (put("format_version", 1.0), "format_version has the wrong type"),
        (drop("format_version"), "another format version"),
        (put("licence", "MIT"), "unknown key 'licence', did you mean 'license'"),
        (put("task/label", "x"), r"sparsehub\.json\.task: unknown key 'label', did you mean 'labels'"),
        (put("delta/parameters/norm.bias/shapes", []), "did you mean 'shape'"),
        (drop("name"), r"sparsehub\.json lacks name"),
        (drop("delta/parameters/norm.bias/nnz"), "lacks nnz"),
        (put("name", 5), r"name has the wrong type; found: int 5; expected: str"),
        (put("task", []), r"task has the wrong type; found: list; expected: an object"),
        (put("task/labels", "ab"), r"task\.labels has the wrong type"),
        (put("task/labels", ["a", 1]), r"task\.labels\[1\] has the wrong type"),
        (put("task/max_length", 128.0), r"max_length has the wrong type"),
        (put("delta/density", "small"), "density has the wrong type"),
        (put("delta/density", 10**400), "density has the wrong type"),
        (put("files/README.md/size", True), "size has the wrong type"),
        (put("metrics/validation/accuracy", "high"), "accuracy has the wrong type"),
        (put("training", []), "training has the wrong type"),
        (put("delta/parameters/norm.bias/shape", [6.0]), r"shape\[0\] has the wrong type"),
        (drop("license"), "not in canonical form"),
        (put("metrics/validation/accuracy", 1), "not in canonical form"),
    ],
)
def test_a_table_that_is_not_a_manifest_is_refused(table: dict[str, Any], spoil: Spoil, message: str) -> None:
    spoil(table)
    with pytest.raises(ManifestError, match=message):
        parse_manifest(canonical_json(table))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put("name", "Golden"), "not a task name; found: 'Golden'"),
        (put("version", ""), "not a version"),
        (put("task/kind", "translation"), "unknown task kind 'translation'"),
        (put("task/problem_type", "regression"), "does not fit the kind"),
        (put("task/labels", ["a", "a"]), "repeated"),
        (put("task/labels", ["a"]), "at least 2 labels"),
        (put("task/labels", [str(i) for i in range(100_001)]), "too many"),
        (put("task/text_fields", []), "1 to 2 text fields"),
        (put("task/text_fields", ["a", "b", "c"]), "1 to 2 text fields"),
        (put("task/max_length", 0), "max_length 0 is out of range"),
        (put("task/max_length", 2**20 + 1), "out of range"),
        (put("task/choice_fields", ["a", "b"]), "choice fields belong to multiple choice"),
        (put("delta/value_kind", "multiply"), "unknown value kind"),
        (put("delta/value_dtype", "float64"), "unknown value dtype"),
        (put("delta/parameters", {}), "changes no parameter"),
        (put("delta/parameters/norm.bias/nnz", 0), "has no entries"),
        (put("delta/parameters/norm.bias/nnz", -1), "has no entries"),
        (put("delta/parameters/norm.bias/nnz", 7), "more entries than it has"),
        (put("delta/parameters/norm.bias/nnz", 10**400), "more entries than it has"),
        (put("delta/parameters/norm.bias/nnz", 2), "nnz is not the sum"),
        (put("delta/parameters/norm.bias/digest", "sha256:" + "A" * 64), "digest of 'norm.bias' is malformed"),
        (put("delta/parameters/norm.bias/digest", "a" * 64), "malformed"),
        (put("delta/parameters/norm.bias/shape", [0]), "absurd shape"),
        (put("delta/parameters/norm.bias/shape", [-6]), "absurd shape"),
        (put("delta/parameters/norm.bias/shape", [2**40 + 1]), "absurd shape"),
        (put("delta/parameters/norm.bias/shape", [1] * 9), "absurd shape"),
        (put("delta/nnz", 8), "nnz is not the sum"),
        (put("delta/density", 0.5), "density is not nnz / parameters"),
        (put("delta/density", 7 / 200_011), "density is not nnz / parameters"),
        (put("backbone/parameters", 0), "more entries than the backbone has"),
        (put("backbone/parameters", -200_010), "more entries than the backbone has"),
        (put("backbone/parameters", 6), "more entries than the backbone has"),
        (put("backbone/parameters", 10**400), "density is not nnz / parameters"),
        (put("backbone/fingerprint", "sha256:0"), "fingerprint is malformed"),
        (put("files/README.md/size", -1), "record of README.md is malformed"),
        (put("files/README.md/sha256", DIGEST + "\n"), "record of README.md is malformed"),
        (drop("files/delta.safetensors"), "does not name delta.safetensors"),
        (put("files", {}), "does not name delta.safetensors"),
        (put("lineage/parents", [parent(name="../x")]), "not a task name"),
        (put("lineage/parents", [parent(version="")]), "not a version"),
        (put("lineage/parents", [parent(digest="sha256:0")]), "digest of the parent topic is malformed"),
        (put("lineage/parents", [parent()] * 1025), "too many parents"),
        (put("lineage/checkpoint_digest", "sha256:0"), "digest of the checkpoint it came from is malformed"),
        (put("lineage/checkpoint", "owner/model"), "needs a name and a digest"),
        (put("lineage/checkpoint_digest", DIGEST), "needs a name and a digest"),
    ],
)
def test_a_manifest_that_cannot_be_true_is_refused(table: dict[str, Any], spoil: Spoil, message: str) -> None:
    spoil(table)
    with pytest.raises(ManifestError, match=message):
        parse_manifest(canonical_json(table))


@pytest.mark.parametrize(
    "name",
    [
        "../delta.safetensors",
        "/etc/passwd",
        "a\\b.png",
        ".hidden.png",
        "..",
        ".",
        "",
        "sub/a.png",
        "a.PNG",
        "a.png\n",
        "a.png.py",
        "a..png",
        "model.pt",
        "head.bin",
        "readme.md",
        "x" * 65 + ".png",
        "sparsehub.json ",
        "ä.png",
        "sparsehub.json",
        "model.sig",
    ],
)
def test_a_file_name_that_a_package_may_not_hold_is_refused(table: dict[str, Any], name: str) -> None:
    table["files"][name] = {"size": 1, "sha256": DIGEST}
    with pytest.raises(ManifestError, match="names a file that a package may not hold"):
        parse_manifest(canonical_json(table))


def test_the_names_that_a_package_may_hold() -> None:
    fixed = ["sparsehub.json", "delta.safetensors", "head.safetensors", "README.md", "model.sig"]
    assert all(is_allowed_file(name) for name in [*fixed, "a.png", "per-layer_2.png", "x" * 64 + ".png"])


def test_there_may_be_sixty_four_pictures(table: dict[str, Any]) -> None:
    record = {"size": 1, "sha256": DIGEST}
    table["files"].update({f"p{i}.png": record for i in range(63)})
    assert len(parse_manifest(canonical_json(table)).files) == 67
    table["files"]["one-more.png"] = record
    with pytest.raises(ManifestError, match="too many files"):
        parse_manifest(canonical_json(table))


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False),
        lambda text: json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")),
        lambda text: json.dumps(dict(reversed(json.loads(text).items())), ensure_ascii=False, separators=(",", ":")),
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text.replace("0.875", "8.75e-1"),
        lambda text: text.replace("0.875", "0.8750"),
        lambda text: text.replace("128", "128e0"),
        lambda text: text.replace('"non"', '"\\u006eon"'),
    ],
    ids=["pretty", "escaped", "order", "newline", "space", "exponent", "zero", "integer", "escape"],
)
def test_another_spelling_of_the_same_manifest_is_refused(spell: Callable[[str], str]) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(spell(GOLDEN.read_text(encoding="utf-8")).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b"{}",
        b"\xff",
        b'{"format_version":1,"format_version":1}',
        b'{"format_version":1,"training":{"lr":NaN}}',
        b'{"format_version":' + b"1" * 5_000 + b"}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
    ],
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(data)


@pytest.mark.parametrize(
    "training", ['{"lr":1e999}', '{"lr":-Infinity}', '"x"', '{"a":"\\ud800"}', '{"a":' + "[" * 300 + "]" * 300 + "}"]
)
def test_free_fields_hold_nothing_that_json_cannot(training: str) -> None:
    text = GOLDEN.read_text(encoding="utf-8")
    spoilt = text.replace('{"learning_rate":0.001,"seed":7,"steps":100}', training)
    assert spoilt != text
    with pytest.raises(ManifestError):
        parse_manifest(spoilt.encode())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_cannot_be_written(manifest: Manifest, value: float) -> None:
    with pytest.raises(ManifestError, match="cannot be written"):
        dataclasses.replace(manifest, metrics={"validation": {"loss": value}}).to_bytes()


def test_every_flipped_bit_and_truncation_is_refused_or_is_another_manifest() -> None:
    sound = GOLDEN.read_bytes()
    accepted = 0
    for position in range(len(sound)):
        for mask in (1, 4, 32, 128):
            spoilt = bytearray(sound)
            spoilt[position] ^= mask
            try:
                other = parse_manifest(bytes(spoilt))
            except ManifestError:
                continue
            accepted += 1
            assert other.to_bytes() == spoilt
            assert other.digest != sha256_bytes(sound)
        with pytest.raises(ManifestError):
            parse_manifest(sound[:position])
    assert 0 < accepted < 4 * len(sound)
