from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sparsehub.backbone import Arena, Backbone, Checkpoint, Slot
from sparsehub.errors import (
    BackboneMismatchError,
)
from sparsehub.package import Package, read_package
from sparsehub.package.manifest import TouchedParameter
from sparsehub.package.reader import check_backbone

GOLDEN = Path(__file__).parents[1] / "golden" / "package"


@pytest.fixture(scope="module")
def golden() -> Package:
    return read_package(GOLDEN)


@pytest.fixture
def backbone(golden: Package) -> Backbone:
    """The backbone that the golden package says it was made for, with a tied twin of `norm.bias`."""
    touched, ref = golden.manifest.delta.parameters, golden.manifest.backbone
    slots = {
        "embed.weight": Slot(torch.float32, 0, (5, 40_000), 200_000),
        "norm.bias": Slot(torch.float32, 200_000, (6,), 6),
        "tied.bias": Slot(torch.float32, 200_000, (6,), 6),
    }
    digests = {name: touched[name].digest for name in touched}
    checkpoint = Checkpoint(ref.id, ref.revision, Path(), digests, ref.fingerprint, ref.dtype)
    return Backbone(torch.nn.Module(), Arena({torch.float32: torch.zeros(200_010)}, slots), checkpoint, digests)


def test_the_backbone_that_a_package_was_made_for_is_taken(golden: Package, backbone: Backbone) -> None:
    check_backbone(golden.manifest, backbone)


def test_a_tied_name_stands_for_the_tensor_it_shares(golden: Package, backbone: Backbone) -> None:
    touched = dict(golden.manifest.delta.parameters)
    touched["tied.bias"] = touched.pop("norm.bias")
    record = dataclasses.replace(golden.manifest.delta, parameters=touched)
    check_backbone(dataclasses.replace(golden.manifest, delta=record), backbone)


def with_slot(backbone: Backbone, name: str, slot: Slot | None) -> Backbone:
    slots = {key: value for key, value in {**backbone.arena.slots, name: slot}.items() if value is not None}
    digests = {key: value for key, value in backbone.digests.items() if key in slots}
    return dataclasses.replace(backbone, arena=Arena(backbone.arena.buffers, slots), digests=digests)


@pytest.mark.parametrize("slot", [None, Slot(torch.float32, 0, (40_000, 5), 200_000)])
def test_a_backbone_without_the_parameter_is_refused(golden: Package, backbone: Backbone, slot: Slot | None) -> None:
    with pytest.raises(BackboneMismatchError, match=r"changes 'embed\.weight', which this backbone lacks"):
        check_backbone(golden.manifest, with_slot(backbone, "embed.weight", slot))


def test_other_weights_are_refused_by_the_parameter(golden: Package, backbone: Backbone) -> None:
    other = dataclasses.replace(backbone, digests={**backbone.digests, "norm.bias": "sha256:" + "e" * 64})
    with pytest.raises(BackboneMismatchError, match=r"the weights of 'norm\.bias' are others.*to do: load"):
        check_backbone(golden.manifest, other)


def test_another_fingerprint_is_refused_where_all_touched_parameters_are_right(
    golden: Package, backbone: Backbone
) -> None:
    checkpoint = dataclasses.replace(backbone.checkpoint, fingerprint="sha256:" + "e" * 64)
    with pytest.raises(BackboneMismatchError, match="the fingerprints differ"):
        check_backbone(golden.manifest, dataclasses.replace(backbone, checkpoint=checkpoint))


def test_a_parameter_that_the_backbone_never_had_is_refused(golden: Package, backbone: Backbone) -> None:
    parameters = {**golden.manifest.delta.parameters, "ghost": TouchedParameter((1,), "sha256:" + "e" * 64, 1)}
    record = dataclasses.replace(golden.manifest.delta, parameters=parameters)
    with pytest.raises(BackboneMismatchError, match="'ghost'"):
        check_backbone(dataclasses.replace(golden.manifest, delta=record), backbone)
