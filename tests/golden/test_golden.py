"""The format, pinned byte for byte: readers of old packages and writers in other languages lean on these files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsehub.delta import Delta, ParameterDelta, delta_bytes, read_delta
from sparsehub.errors import ManifestError
from sparsehub.files import canonical_json
from sparsehub.package import Manifest, TaskSpec, read_package, write_package
from sparsehub.package.manifest import (
    BackboneRef,
    DeltaRecord,
    FileRecord,
    TouchedParameter,
    check_manifest,
    parse_manifest,
)
from sparsehub.package.task_spec import HeadSpec
from tests.support.packages import write_bare_package

GOLDEN = Path(__file__).parent
FORMAT_PAGE = GOLDEN.parents[1] / "docs" / "format.md"

SHAPES = {"embed.weight": (5, 40_000), "norm.bias": (6,)}
INDICES = {"embed.weight": [0, 1, 65_535, 65_536, 131_071, 199_999], "norm.bias": [5]}
VALUES = {"embed.weight": [0.5, -0.25, 1.5, -2.0, 0.125, 3.0], "norm.bias": [-1.0]}
INT8_VALUES = [0.5 * (i % 128) for i in range(256)] + [-254.0]

DELTAS = {
    "float32": "e6af5b3143fe677f64ae0c8a50786cd140122e0105f207fc248085ceed55fec3",
    "float16": "561e5c96f5bc637a9bbf782924b32892f8cc7932d025e8e8b332933302a87112",
    "bfloat16": "8a8ee6f9d2b367c1e57573ca532b627f80dc1cfd0c487f700a92f50c40ab3563",
    "int8": "69645ccf25a78cb1e244539528c0a88fece8bc4a8a3374c378c94cd8a7aae71a",
}
FILES = {
    "sparsehub.json": "2a079812c5aaeaa0e560b656b4adb54d28f3b2dc3aedd6f5514f23e28e9c15ba",
    "delta.safetensors": "561e5c96f5bc637a9bbf782924b32892f8cc7932d025e8e8b332933302a87112",
    "head.safetensors": "08d68fddd3dfe741ece002674a7da58b6a5c817302c168ba83d04fe6fed002de",
    "README.md": "f99dc95549c63ca8264da0e4b1804f2b3f56105aa66d30eda33971b8f36d2866",
    "density.png": "a1abfd410973b0111c215baa879b9edcd739e601659ba44168269767cc2e9108",
}
FILES_2 = {
    **FILES,
    "sparsehub.json": "8112291aeb5ce296ba61da2eb374743941a944442901985437561ba638ac679f",
    "head.safetensors": "8e7e9d124949c1c08c775849ad4db4415c98ad27b293412af3492547dc8900fa",
}
FLOAT16_DATA = "0300000002000000000000000100000001000000003800b4003e00c00030004200bc00000100ffff0000ffff3f0d0500"


def golden_delta(value_dtype: str) -> Delta:
    if value_dtype == "int8":
        part = ParameterDelta((300,), torch.arange(43, 300), torch.tensor(INT8_VALUES))
        return Delta({"wide.weight": part}, "add", value_dtype)
    parts = {
        name: ParameterDelta(shape, torch.tensor(INDICES[name]), torch.tensor(VALUES[name]))
        for name, shape in SHAPES.items()
    }
    return Delta(parts, "add", value_dtype)


def golden_draft() -> Manifest:
    touched = {
        name: TouchedParameter(shape, "sha256:" + str(i) * 64, len(INDICES[name]))
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    return Manifest(
        format_version=1,
        name="golden",
        version="1.0.0",
        task=TaskSpec(
            kind="text-classification",
            labels=("non", "où"),
            problem_type="single_label_classification",
            text_fields=("text",),
            label_field="label",
            max_length=128,
            metrics=("accuracy",),
        ),
        backbone=BackboneRef("example/backbone", "", "BertModel", "float32", "sha256:" + "f" * 64, 200_010),
        delta=DeltaRecord("sam", 7 / 200_010, 7, "add", "float16", touched),
        files={},
        training={"learning_rate": 0.001, "seed": 7, "steps": 100},
        metrics={"validation": {"accuracy": 0.875}},
        license="Apache-2.0",
    )


def golden_draft_2() -> Manifest:
    """The same package in format 2: a linear head, changed layers, baselines."""
    one = golden_draft()
    assert one.delta is not None
    return dataclasses.replace(
        one,
        format_version=2,
        task=dataclasses.replace(one.task, head=HeadSpec("linear", "mean", False, "joint")),
        delta=dataclasses.replace(one.delta, layers=(-1, 6)),
        training={**one.training, "baselines": {"validation": {"probe": {"accuracy": 0.75}}}},
    )


def linear_head() -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([[0.5, -1.0, 2.0], [0.25, 4.0, -8.0]]), "bias": torch.tensor([1.0, -1.0])}


def golden_head() -> dict[str, torch.Tensor]:
    return {
        "classifier.weight": torch.tensor([[0.5, -1.0, 2.0], [0.25, 4.0, -8.0]]),
        "classifier.bias": torch.tensor([1.0, -1.0], dtype=torch.bfloat16),
    }


def picture() -> bytes:
    """A PNG of one grey point."""
    return bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
        "3a7e9b550000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
    )


CARD = "# golden\n\nA package whose every byte is pinned.\n"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("value_dtype", DELTAS)
def test_the_golden_delta_has_the_pinned_bytes(value_dtype: str) -> None:
    assert sha256(GOLDEN / f"delta-{value_dtype}.safetensors") == DELTAS[value_dtype]


@pytest.mark.parametrize("value_dtype", DELTAS)
def test_the_writer_reproduces_the_golden_delta(value_dtype: str) -> None:
    assert delta_bytes(golden_delta(value_dtype)) == (GOLDEN / f"delta-{value_dtype}.safetensors").read_bytes()


@pytest.mark.parametrize("value_dtype", ["float32", "float16", "bfloat16"])
def test_the_reader_gets_the_exact_indices_and_values(value_dtype: str) -> None:
    delta = read_delta(GOLDEN / f"delta-{value_dtype}.safetensors", SHAPES, "add", value_dtype)
    assert {name: part.indices.tolist() for name, part in delta.parameters.items()} == INDICES
    assert {name: part.values.tolist() for name, part in delta.parameters.items()} == VALUES
    assert {part.values.dtype for part in delta.parameters.values()} == {getattr(torch, value_dtype)}
    assert delta.nnz == 7


def test_the_reader_multiplies_int8_by_its_scales() -> None:
    delta = read_delta(GOLDEN / "delta-int8.safetensors", {"wide.weight": (300,)}, "add", "int8")
    part = delta.parameters["wide.weight"]
    assert part.indices.tolist() == list(range(43, 300))
    assert part.values.dtype == torch.float32
    assert part.values.tolist() == INT8_VALUES


@pytest.mark.parametrize("name", FILES)
def test_the_golden_package_has_the_pinned_bytes(name: str) -> None:
    assert sha256(GOLDEN / "package" / name) == FILES[name]


def test_the_reader_gets_the_golden_package() -> None:
    package = read_package(GOLDEN / "package")
    assert package.digest == "sha256:" + FILES["sparsehub.json"]
    assert {name: part.indices.tolist() for name, part in package.delta.parameters.items()} == INDICES
    assert {name: part.values.tolist() for name, part in package.delta.parameters.items()} == VALUES
    assert package.manifest.task.labels == ("non", "où")
    assert set(package.head) == set(golden_head())
    for name, tensor in golden_head().items():
        assert package.head[name].dtype == tensor.dtype
        assert torch.equal(package.head[name], tensor)


def test_the_writer_reproduces_the_golden_package(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    write_bare_package(folder, golden_draft(), golden_delta("float16"), golden_head(), CARD, {"density.png": picture()})
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == {name: (GOLDEN / "package" / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("name", FILES_2)
def test_the_golden_package_of_format_2_has_the_pinned_bytes(name: str) -> None:
    assert sha256(GOLDEN / "package-2" / name) == FILES_2[name]


def test_the_reader_gets_the_golden_package_of_format_2() -> None:
    package = read_package(GOLDEN / "package-2")
    assert package.digest == "sha256:" + FILES_2["sparsehub.json"]
    assert package.manifest.task.head == HeadSpec("linear", "mean", False, "joint")
    assert package.manifest.delta is not None
    assert package.manifest.delta.layers == (-1, 6)
    assert {name: tensor.tolist() for name, tensor in package.head.items()} == {
        name: tensor.tolist() for name, tensor in linear_head().items()
    }


def test_a_package_of_format_1_has_a_head_of_transformers_and_does_not_say_which_layers_change() -> None:
    manifest = read_package(GOLDEN / "package").manifest
    assert manifest.task.head == HeadSpec("transformers")
    assert manifest.delta is not None
    assert manifest.delta.layers is None


def test_the_writer_reproduces_the_golden_package_of_format_2(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    pictures = {"density.png": picture()}
    write_bare_package(folder, golden_draft_2(), golden_delta("float16"), linear_head(), CARD, pictures)
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == {name: (GOLDEN / "package-2" / name).read_bytes() for name in FILES_2}


def test_a_package_without_a_delta_is_a_manifest_a_head_and_a_card(tmp_path: Path) -> None:
    draft = dataclasses.replace(golden_draft_2(), delta=None)
    manifest = write_package(tmp_path / "package", draft, Delta({}), linear_head())
    assert {path.name for path in (tmp_path / "package").iterdir()} == {
        "sparsehub.json",
        "head.safetensors",
        "README.md",
    }
    package = read_package(tmp_path / "package")
    assert package.manifest == manifest
    assert package.manifest.to_bytes().count(b'"delta":null') == 1
    assert (package.delta.nnz, package.manifest.nnz, package.manifest.density, package.manifest.method) == (
        0,
        0,
        0,
        "head",
    )
    assert sum(path.stat().st_size for path in (tmp_path / "package").iterdir()) < 4096


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"task": {"head": HeadSpec("linear", "median", False, "joint")}}, "unknown pooling 'median'"),
        ({"task": {"head": HeadSpec("linear", "mean", None, "joint")}}, "whether its vectors are normalised"),
        ({"task": {"head": HeadSpec("linear", "mean", False, "triple")}}, "unknown pair 'triple'"),
        ({"task": {"head": HeadSpec("linear", "mean", False, "separate")}}, "needs two text fields"),
        (
            {"task": {"head": HeadSpec("linear", "mean", False, "cosine"), "text_fields": ("a", "b")}},
            "for a regression",
        ),
        ({"task": {"head": HeadSpec("none")}}, "has no head of type 'none'"),
        ({"task": {"head": HeadSpec("transformers", "mean")}}, "pooling belong to a linear head"),
        ({"delta": {"layers": (7, 6)}}, "none of the layers"),
        ({"delta": {"layers": (1,)}}, "layers are the first changed one"),
    ],
)
def test_a_head_or_layers_that_make_no_sense_are_refused(change: dict[str, dict[str, Any]], problem: str) -> None:
    draft = golden_draft_2()
    parts = {name: dataclasses.replace(getattr(draft, name), **values) for name, values in change.items()}
    record = {name: FileRecord(1, "sha256:" + "0" * 64) for name in ("delta.safetensors", "head.safetensors")}
    with pytest.raises(ManifestError, match=problem):
        check_manifest(dataclasses.replace(draft, files=record, **parts))


@pytest.mark.parametrize(("stated", "problem"), [([], "not in canonical form"), ([0.5, 0.5], "thresholds")])
def test_thresholds_stand_where_a_row_has_several_labels_and_nowhere_else(stated: list[float], problem: str) -> None:
    table = json.loads((GOLDEN / "package-2" / "sparsehub.json").read_bytes())
    table["task"]["thresholds"] = stated
    with pytest.raises(ManifestError, match=problem):
        parse_manifest(canonical_json(table))


@pytest.mark.parametrize("key", ["activation"])
def test_fields_of_features_that_are_not_there_are_refused(key: str) -> None:
    table = json.loads((GOLDEN / "package-2" / "sparsehub.json").read_bytes())
    table["task"][key] = None
    with pytest.raises(ManifestError, match=f"unknown key '{key}'"):
        parse_manifest(canonical_json(table))


def test_a_head_without_a_type_and_a_field_of_format_2_in_format_1_are_refused() -> None:
    two = json.loads((GOLDEN / "package-2" / "sparsehub.json").read_bytes())
    with pytest.raises(ManifestError, match="not in canonical form"):
        parse_manifest(canonical_json({**two, "format_version": 1}))
    two["task"]["head"] = {}
    with pytest.raises(ManifestError, match="lacks type"):
        parse_manifest(canonical_json(two))


def test_the_worked_example_of_the_format_page_is_the_golden_delta() -> None:
    data = (GOLDEN / "delta-float16.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert data[start:].hex() == FLOAT16_DATA
    page = FORMAT_PAGE.read_text(encoding="utf-8")
    assert FLOAT16_DATA in page.replace(" ", "").replace("\n", "")
    assert DELTAS["float16"] in page
    assert data[8:start].decode().rstrip() in page


def test_what_was_asked_of_a_task_is_not_in_its_bytes() -> None:
    for draft in (golden_draft(), golden_draft_2()):
        before = draft.to_bytes()
        assert not draft.task.reads_alone and draft.digest.startswith("sha256:")
        assert draft.to_bytes() == before
