"""Weights under another configuration are another backbone: what a package records of it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

import sparsehub
from sparsehub.backbone import open_checkpoint
from sparsehub.backbone.configuration import computed_with
from sparsehub.convert.merge import additions
from sparsehub.errors import BackboneMismatchError
from sparsehub.files import canonical_json
from sparsehub.package import Package, read_package
from sparsehub.package.manifest import CONFIGURATION
from sparsehub.package.materialize import task_model_of
from sparsehub.package.summary import summarize

TinyCheckpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def package(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """What an extraction makes of a classifier in which one weight changed."""
    folder, base = tmp_path_factory.mktemp("configured"), tiny_checkpoint("bert")
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    model.save_pretrained(folder / "tuned")
    sparsehub.extract(folder / "tuned", base, folder / "package", name="mood", labels=("no", "yes"), check=False)
    return read_package(folder / "package")


def edited(base: Path, folder: Path, **fields: Any) -> Path:
    """A copy of a backbone's folder with another config.json."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize(
    "fields",
    [{"hidden_act": "relu"}, {"layer_norm_eps": 0.1}, {"num_attention_heads": 2}],
    ids=lambda fields: str(fields),
)
def test_the_same_weights_under_another_configuration_are_refused_by_the_name_of_its_key(
    package: Package, tiny_checkpoint: TinyCheckpoint, tmp_path: Path, fields: dict[str, Any]
) -> None:
    base = tiny_checkpoint("bert")
    task_model_of(package, open_checkpoint(str(base)))
    other, ((name, value),) = edited(base, tmp_path / "other", **fields), fields.items()
    assert open_checkpoint(str(other)).fingerprint == package.manifest.backbone.fingerprint
    message = rf"its configuration computes something else .*found: .*other with {name}: {value}; expected: .*{name}: "
    with pytest.raises(BackboneMismatchError, match=message):
        task_model_of(package, open_checkpoint(str(other)))


def test_what_changes_no_answer_is_no_other_backbone(
    package: Package, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    fields = {"hidden_dropout_prob": 0.5, "_name_or_path": "x", "transformers_version": "4.1", "id2label": {"0": "a"}}
    other = edited(tiny_checkpoint("bert"), tmp_path / "other", **fields, a_field_of_tomorrow=3)
    task_model_of(package, open_checkpoint(str(other)))


def with_record(package: Package, record: Any) -> Package:
    training = {**package.manifest.training, CONFIGURATION: record}
    return dataclasses.replace(package, manifest=dataclasses.replace(package.manifest, training=training))


@pytest.mark.parametrize("record", [None, {}, [], "hidden_act", {"a_field_of_yesterday": 3}])
def test_a_package_without_a_record_is_taken_as_it_always_was(
    package: Package, tiny_checkpoint: TinyCheckpoint, tmp_path: Path, record: Any
) -> None:
    task_model_of(with_record(package, record), open_checkpoint(str(tiny_checkpoint("bert"))))


def test_packages_of_two_configurations_are_not_merged(package: Package) -> None:
    other = with_record(package, {**package.manifest.backbone_configuration, "hidden_act": "relu"})
    added = [
        dataclasses.replace(one, delta=dataclasses.replace(one.delta, value_kind="add")) for one in (package, other)
    ]
    with pytest.raises(
        BackboneMismatchError, match=r"compute something else .*found: mood: hidden_act: relu; expected:"
    ):
        additions(added, None)
    assert len(additions([added[0], added[0]], None)) == 2


def test_the_record_is_json_and_no_reader_is_shown_all_of_it(package: Package) -> None:
    config = BertConfig(layer_norm_eps=math.inf, hidden_dropout_prob=0.3, id2label={0: "a"})
    found = computed_with(config)
    assert found["layer_norm_eps"] == "inf" and found["hidden_act"] == "gelu" and canonical_json(found)
    assert not {"hidden_dropout_prob", "id2label", "transformers_version", "dtype"} & found.keys()
    assert CONFIGURATION in package.manifest.training and CONFIGURATION not in summarize(package.manifest).training
