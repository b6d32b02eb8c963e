"""Merges and differences of packages, and the comparison of two: for `sparsehub merge` and `sparsehub diff`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsehub import __version__
from sparsehub.backbone import Checkpoint
from sparsehub.convert.checkpoint_pair import backbone_tensors
from sparsehub.convert.name_matching import layout_of
from sparsehub.convert.tensor_reader import stored_tensors
from sparsehub.delta import Delta, Overlap, overlap
from sparsehub.delta.algebra import as_additions, dare, difference, prune, ties, weighted_sum, with_value_dtype
from sparsehub.delta.overlap import shared_entries
from sparsehub.errors import BackboneMismatchError, UsageError
from sparsehub.package import Manifest, Package, write_package
from sparsehub.package.manifest import CONFIGURATION, FORMAT_VERSION, Lineage, Parent
from sparsehub.package.manifest_builder import delta_record
from sparsehub.progress import work
from sparsehub.schema import unknown_name
from sparsehub.selection.layer_report import layer_of

Combine = Callable[[Sequence[Delta], Sequence[float], "MergeRecipe"], Delta]
_METHODS: dict[str, Combine] = {
    "task-arithmetic": lambda deltas, weights, _: weighted_sum(deltas, weights),
    "ties": lambda deltas, weights, recipe: ties(deltas, weights, recipe.density),
    "dare": lambda deltas, weights, recipe: dare(deltas, weights, recipe.density, seed=recipe.seed),
    "dare-ties": lambda deltas, weights, recipe: dare(deltas, weights, recipe.density, seed=recipe.seed, elect=True),
}
MERGES = tuple(_METHODS)


@dataclass(frozen=True)
class MergeRecipe:
    """How `merge_packages` merges."""

    method: str = "task-arithmetic"  # one of `MERGES`
    weights: tuple[float, ...] = ()  # one a package; all 1 where it is empty
    density: float = 1.0  # share of its entries that ties and dare keep of each package
    seed: int = 42  # of what dare draws
    budget: int = 0  # entries of the result, 0 for all
    value_dtype: str | None = None  # None for that of the packages


@dataclass(frozen=True)
class PackageLabel:
    """Folder, name and version of a package to write."""

    out: Path
    name: str
    version: str = "0.1.0"


def merge_packages(
    packages: Sequence[Package], recipe: MergeRecipe, label: PackageLabel, checkpoint: Checkpoint | None = None
) -> Manifest:
    """Merge the deltas; task and head are the first package's.

    checkpoint: the backbone, which packages with `set` values need. Raises `UsageError` and `BackboneMismatchError`.
    """
    if recipe.method not in MERGES:
        raise UsageError(unknown_name("way to merge", recipe.method, list(MERGES)))
    weights = recipe.weights or (1.0,) * len(packages)
    deltas = additions(packages, checkpoint)
    with work(f"merging {len(packages)} packages"):
        merged = _METHODS[recipe.method](deltas, weights, recipe)
        merged = prune(merged, recipe.budget) if recipe.budget else merged
        merged = with_value_dtype(merged, recipe.value_dtype) if recipe.value_dtype else merged
    record: dict[str, object] = {"method": recipe.method, "weights": list(weights)}
    record |= {"density": recipe.density, "seed": recipe.seed} if recipe.method != "task-arithmetic" else {}
    return _write(packages, weights, merged, "merged", {"merge": record}, label)


def difference_package(
    first: Package,
    second: Package,
    label: PackageLabel,
    checkpoint: Checkpoint | None = None,
    value_dtype: str = "float32",
) -> Manifest:
    """Write the change from `first` to `second` as a package with the second's task and head.

    It is no task by itself: merged with `first` it gives `second` (up to the rounding of the sums).
    """
    before, after = additions([first, second], checkpoint)
    change = with_value_dtype(difference(before, after), value_dtype)
    meaning = (
        f"the change from {first.manifest.name}@{first.manifest.version} to "
        f"{second.manifest.name}@{second.manifest.version}; on the backbone alone it is no task"
    )
    return _write([second, first], (1.0, -1.0), change, "difference", {"meaning": meaning}, label)


def additions(packages: Sequence[Package], checkpoint: Checkpoint | None) -> list[Delta]:
    """The packages' deltas as `add` deltas; raises where they belong to different backbones."""
    if len(packages) < 2:
        raise UsageError("it takes two packages at least", found=len(packages))
    first = packages[0].manifest
    for other in packages[1:]:
        if other.manifest.backbone.fingerprint != first.backbone.fingerprint:
            raise BackboneMismatchError(
                "these packages belong to different backbones, so their entries have nothing to do with each other",
                found=f"{other.manifest.name}: {other.manifest.backbone.id} {other.manifest.backbone.fingerprint}",
                expected=f"{first.name}: {first.backbone.id} {first.backbone.fingerprint}",
            )
        _check_configurations(first, other.manifest)
    return [as_additions(package.delta, _base_of(package, checkpoint)) for package in packages]


def _check_configurations(first: Manifest, other: Manifest) -> None:
    mine, theirs = first.backbone_configuration, other.backbone_configuration
    names = sorted(name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name])
    if names:
        raise BackboneMismatchError(
            "these packages belong to backbones that compute something else with the same weights",
            found=f"{other.name}: {', '.join(f'{name}: {theirs[name]}' for name in names)}"[:300],
            expected=f"{first.name}: {', '.join(f'{name}: {mine[name]}' for name in names)}"[:300],
        )


def _base_of(package: Package, checkpoint: Checkpoint | None) -> Callable[[str], Tensor]:
    """The backbone's weights by name, in the dtype in which a `set` package runs."""
    if package.delta.value_kind == "add":
        return lambda _: torch.empty(0)  # never called: additions need no base
    name = package.manifest.name
    if checkpoint is None:
        raise UsageError(
            f"{name} sets weights, and only the backbone says by how much they change", fix="give --backbone"
        )
    if checkpoint.fingerprint != package.manifest.backbone.fingerprint:
        raise BackboneMismatchError(
            f"{name} was made for another backbone",
            found=f"{checkpoint.id} {checkpoint.fingerprint}",
            expected=f"{package.manifest.backbone.id} {package.manifest.backbone.fingerprint}",
        )
    places = backbone_tensors(layout_of(checkpoint, package.manifest.task), checkpoint).names
    tensors = stored_tensors(checkpoint.folder)
    dtype = getattr(torch, package.delta.value_dtype)
    return lambda parameter: tensors[places[parameter]].read().to(dtype)


def _write(
    packages: Sequence[Package],
    weights: Sequence[float],
    delta: Delta,
    method: str,
    training: dict[str, object],
    label: PackageLabel,
) -> Manifest:
    first = packages[0].manifest
    digests = {n: t.digest for package in packages for n, t in package.manifest.touched.items()}
    parents = tuple(
        Parent(p.manifest.name, p.manifest.version, p.digest, float(weight))
        for p, weight in zip(packages, weights, strict=True)
    )
    licences = {package.manifest.license for package in packages}
    manifest = Manifest(
        FORMAT_VERSION,
        label.name,
        label.version,
        first.task,
        first.backbone,
        delta_record(method, delta, first.backbone.parameters, digests.__getitem__),
        files={},
        training={**training, "versions": {"sparsehub": __version__}, **_configuration(first)},
        license=licences.pop() if len(licences) == 1 else "",
        lineage=Lineage(parents),
    )
    return write_package(label.out, manifest, delta, packages[0].head)


def _configuration(manifest: Manifest) -> dict[str, object]:
    stated = manifest.backbone_configuration
    return {CONFIGURATION: dict(stated)} if stated else {}


@dataclass(frozen=True)
class LayerComparison:
    """What two packages change in one layer."""

    part: str
    first: int  # entries that the first package changes
    second: int
    shared: int  # entries that both change
    cosine: float  # of the two changes as vectors over the layer


@dataclass(frozen=True)
class PairComparison:
    """What two packages on one backbone have in common."""

    overlap: Overlap
    cosine: float  # of their changes as vectors over all weights
    norms: tuple[float, float]  # of each change
    parts: tuple[LayerComparison, ...]
    same_head: bool


def compare(first: Package, second: Package, checkpoint: Checkpoint | None = None) -> PairComparison:
    """What two packages have in common; raises where they belong to different backbones."""
    with work("comparing two packages"):
        return _compare(*additions([first, second], checkpoint), same_head=_same(first.head, second.head))


def _compare(one: Delta, two: Delta, *, same_head: bool) -> PairComparison:
    names = sorted({*one.parameters, *two.parameters})
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(layer_of(name), []).append(name)
    norms = (_norm(one, names), _norm(two, names))
    return PairComparison(
        overlap(one, two),
        _cosine(one, two, names),
        norms,
        tuple(_part(layer, one, two, members) for layer, members in groups.items()),
        same_head,
    )


def _part(layer: str, one: Delta, two: Delta, names: Sequence[str]) -> LayerComparison:
    counts = [sum(len(d.parameters[n].indices) for n in names if n in d.parameters) for d in (one, two)]
    shared = sum(len(shared_entries(one.parameters[n], two.parameters[n])[0]) for n in names if _both(one, two, n))
    return LayerComparison(layer, counts[0], counts[1], shared, _cosine(one, two, names))


def _both(one: Delta, two: Delta, name: str) -> bool:
    return name in one.parameters and name in two.parameters


def _norm(delta: Delta, names: Sequence[str]) -> float:
    found = (delta.parameters[n].values.double().square().sum() for n in names if n in delta.parameters)
    return math.sqrt(sum(float(square) for square in found))


def _cosine(one: Delta, two: Delta, names: Sequence[str]) -> float:
    product = 0.0
    for name in names:
        if _both(one, two, name):
            a, b = shared_entries(one.parameters[name], two.parameters[name])
            values = one.parameters[name].values[a].double() * two.parameters[name].values[b].double()
            product += float(values.sum())
    lengths = _norm(one, names) * _norm(two, names)
    return product / lengths if lengths else 0.0


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
