"""Merged packages, the way from one to another, and comparisons: what is in the package, and what it says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone import Backbone, load_backbone, open_checkpoint
from sparsehub.convert.extract import Extraction, extract_lossless
from sparsehub.convert.merge import MergeRecipe, PackageLabel, compare, difference_package, merge_packages
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.errors import BackboneMismatchError, DeltaError, UsageError
from sparsehub.package import Manifest, Package, read_package
from sparsehub.package.manifest import Parent
from sparsehub.package.manifest_builder import backbone_ref, delta_record
from sparsehub.package.reader import check_backbone
from sparsehub.package.task_spec import TaskSpec
from sparsehub.patch import apply_patch, make_patch
from tests.support.packages import write_bare_package

TinyCheckpoint = Callable[[str], Path]
Make = Callable[..., Package]


@pytest.fixture(scope="module")
def backbone(tiny_checkpoint: TinyCheckpoint) -> Backbone:
    return load_backbone(str(tiny_checkpoint("bert")))


@pytest.fixture
def make(backbone: Backbone, task: TaskSpec, tmp_path: Path) -> Make:
    """make(name, seed): a package of 40 random entries in each of three parameters."""

    def package(name: str, seed: int, value_dtype: str = "float32", license: str = "mit") -> Package:  # noqa: A002
        generator = torch.Generator().manual_seed(seed)
        parts = {}
        for parameter in ("pooler.dense.weight", "encoder.layer.0.output.dense.weight", "pooler.dense.bias"):
            slot = backbone.arena.slots[parameter]
            count = min(40, slot.numel // 2)
            places = torch.randperm(slot.numel, generator=generator)[:count].sort().values
            values = (torch.randn(count, generator=generator) / 4).to(getattr(torch, value_dtype)).float()
            parts[parameter] = ParameterDelta(slot.shape, places, values)
        delta = Delta(parts, "add", value_dtype)
        record = delta_record("random", delta, backbone.arena.numel, backbone.digest_of)
        draft = Manifest(1, name, "1.0.0", task, backbone_ref(backbone), record, files={}, license=license)
        head = {"classifier.weight": torch.randn(3, 32, generator=generator), "classifier.bias": torch.zeros(3)}
        write_bare_package(tmp_path / name, draft, delta, head, "# a card\n", {})
        return read_package(tmp_path / name)

    return package


def weights_with(backbone: Backbone, *deltas: tuple[Delta, float]) -> Tensor:
    """All weights of a backbone to which deltas were added with weights."""
    from sparsehub.patch import restore_patch

    arena, patches = backbone.arena, []
    for delta, weight in deltas:
        parts = {n: dataclasses.replace(p, values=p.values.float() * weight) for n, p in delta.parameters.items()}
        patches.append(make_patch(backbone, Delta(parts, "add", "float32")))
        apply_patch(arena, patches[-1])
    found = torch.cat([arena.view(name).flatten() for name in arena.slots]).clone()
    for patch in reversed(patches):
        restore_patch(arena, patch)
    return found


def test_a_merged_package_adds_up_and_tells_its_parents(make: Make, backbone: Backbone, tmp_path: Path) -> None:
    first, second = make("first", 1), make("second", 2)
    manifest = merge_packages(
        [first, second], MergeRecipe(weights=(1.0, -0.5)), PackageLabel(tmp_path / "out", "both", "2.0")
    )
    merged = read_package(tmp_path / "out")
    check_backbone(merged.manifest, backbone)
    expected = weights_with(backbone, (first.delta, 1.0), (second.delta, -0.5))
    torch.testing.assert_close(weights_with(backbone, (merged.delta, 1.0)), expected, rtol=0, atol=1e-6)
    assert manifest.lineage.parents == (
        Parent("first", "1.0.0", first.digest, 1.0),
        Parent("second", "1.0.0", second.digest, -0.5),
    )
    assert {n: t.tolist() for n, t in merged.head.items()} == {n: t.tolist() for n, t in first.head.items()}
    assert (manifest.name, manifest.version, manifest.license, manifest.metrics) == ("both", "2.0", "mit", {})
    assert manifest.training["merge"] == {"method": "task-arithmetic", "weights": [1.0, -0.5]}


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties"])
def test_other_ways_a_budget_and_a_dtype(make: Make, tmp_path: Path, method: str) -> None:
    recipe = MergeRecipe(method, density=0.5, seed=3, budget=20, value_dtype="bfloat16")
    packages = [make(f"p{i}", i) for i in range(3)]
    manifest = merge_packages(packages, recipe, PackageLabel(tmp_path / "out", "merged"))
    assert (manifest.delta.nnz, manifest.delta.value_dtype) == (20, "bfloat16")
    assert manifest.training["merge"] == {"method": method, "weights": [1.0] * 3, "density": 0.5, "seed": 3}


def test_different_licences_leave_it_open(make: Make, tmp_path: Path) -> None:
    packages = [make("a", 1), make("b", 2, license="apache-2.0")]
    assert merge_packages(packages, MergeRecipe(), PackageLabel(tmp_path / "out", "ab")).license == ""


def test_the_way_from_one_to_another_merged_with_the_one_is_the_other(
    make: Make, backbone: Backbone, tmp_path: Path
) -> None:
    first, second = make("first", 1), make("second", 2)
    manifest = difference_package(first, second, PackageLabel(tmp_path / "way", "way"))
    way = read_package(tmp_path / "way")
    assert "the change from first@1.0.0 to second@1.0.0" in manifest.training["meaning"]
    assert [(p.name, p.weight) for p in manifest.lineage.parents] == [("second", 1.0), ("first", -1.0)]
    merge_packages([way, first], MergeRecipe(), PackageLabel(tmp_path / "there", "there"))
    there = read_package(tmp_path / "there")
    expected = weights_with(backbone, (second.delta, 1.0))
    torch.testing.assert_close(weights_with(backbone, (there.delta, 1.0)), expected, rtol=0, atol=1e-6)
    assert {n: t.tolist() for n, t in there.head.items()} == {n: t.tolist() for n, t in second.head.items()}
    with pytest.raises(DeltaError, match="changes nothing"):
        difference_package(first, first, PackageLabel(tmp_path / "nothing", "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_comparison_counts_and_measures(make: Make) -> None:
    first, second = make("first", 1), make("second", 2)
    found = compare(first, second)
    dense = []
    for package in (first, second):
        flat = [torch.zeros(p.numel) for _, p in sorted(first.delta.parameters.items())]
        for row, (_, part) in zip(flat, sorted(package.delta.parameters.items()), strict=True):
            row[part.indices] = part.values
        dense.append(torch.cat(flat).double())
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(*dense, dim=0)))
    assert found.norms == pytest.approx([float(row.norm()) for row in dense])
    assert found.overlap.shared == int(((dense[0] != 0) & (dense[1] != 0)).sum())
    assert {part.part for part in found.parts} == {"pooler", "encoder.layer.0"}
    assert sum(part.shared for part in found.parts) == found.overlap.shared
    assert not found.same_head
    itself = compare(first, first)
    assert itself.cosine == pytest.approx(1.0) and itself.overlap.jaccard == 1.0 and itself.same_head


def test_set_values_need_the_backbone(make: Make, tune: Any, tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    base = tiny_checkpoint("bert")
    checkpoint = open_checkpoint(str(base))
    tuned = tune(base)
    task = make("one", 1).manifest.task
    extract_lossless(Extraction(checkpoint, task, tmp_path / "exact", "exact"), open_checkpoint(str(tuned)))
    exact, one = read_package(tmp_path / "exact"), make("two", 2)
    with pytest.raises(UsageError, match=r"exact sets weights.*--backbone"):
        merge_packages([exact, one], MergeRecipe(), PackageLabel(tmp_path / "out", "merged"))
    merge_packages([exact, one], MergeRecipe(weights=(1.0, 0.0)), PackageLabel(tmp_path / "out", "merged"), checkpoint)
    backbone = load_backbone(str(base))
    merged = weights_with(backbone, (read_package(tmp_path / "out").delta, 1.0))
    apply_patch(backbone.arena, make_patch(backbone, exact.delta))
    wanted = torch.cat([backbone.arena.view(name).flatten() for name in backbone.arena.slots])
    torch.testing.assert_close(merged, wanted, rtol=1e-6, atol=1e-7)
    with pytest.raises(BackboneMismatchError, match="made for another backbone"):
        merge_packages(
            [exact, one],
            MergeRecipe(),
            PackageLabel(tmp_path / "x", "x"),
            open_checkpoint(str(tiny_checkpoint("roberta"))),
        )


def test_what_cannot_be_merged_is_refused(make: Make, tmp_path: Path) -> None:
    first = make("first", 1)
    strange = dataclasses.replace(
        first,
        manifest=dataclasses.replace(
            first.manifest,
            backbone=dataclasses.replace(first.manifest.backbone, fingerprint="sha256:" + "0" * 64, id="other"),
        ),
    )
    label = PackageLabel(tmp_path / "out", "merged")
    with pytest.raises(BackboneMismatchError, match=r"belong to different backbones.*other"):
        merge_packages([first, strange], MergeRecipe(), label)
    with pytest.raises(BackboneMismatchError, match="belong to different backbones"):
        compare(first, strange)
    with pytest.raises(UsageError, match="it takes two packages"):
        merge_packages([first], MergeRecipe(), label)
    with pytest.raises(UsageError, match="one weight for each delta"):
        merge_packages([first, make("second", 2)], MergeRecipe(weights=(1.0,)), label)
    with pytest.raises(UsageError, match="unknown way to merge 'tie', did you mean 'ties'"):
        merge_packages([first, first], MergeRecipe("tie"), label)
    assert not (tmp_path / "out").exists()
