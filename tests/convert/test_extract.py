"""A package from a pair of checkpoints: bit for bit, or the largest changes; what has no place is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone import load_backbone, open_checkpoint
from sparsehub.convert.extract import Extraction, extract_largest, extract_lossless
from sparsehub.convert.task_inference import TaskHints, task_of
from sparsehub.errors import BackboneError, DeltaError, SparsehubError, UsageError
from sparsehub.package import read_package
from sparsehub.package.materialize import materialize
from sparsehub.package.reader import check_backbone
from sparsehub.package.task_spec import TaskSpec

Base = Callable[[str, str], Path]
Tune = Callable[..., Path]
Weights = Callable[[Path], dict[str, Tensor]]
Rewrite = Callable[[Path, Callable[[dict[str, Tensor]], dict[str, Any]]], None]
FAMILIES = ["bert", "llama", "gpt2"]
DTYPES = ["float32", "float16", "bfloat16"]


def wanted(base: Path, task: TaskSpec, tmp_path: Path, **more: Any) -> Extraction:
    return Extraction(open_checkpoint(str(base)), task, tmp_path / "package", "tuned", **more)


def bits(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    kinds = {4: torch.int32, 2: torch.int16}
    return {name: tensor.view(kinds[tensor.itemsize]).flatten().tolist() for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lossless_package_materialises_to_the_very_bits(
    base_in: Base, tune: Tune, weights: Weights, task: TaskSpec, tmp_path: Path, family: str, dtype: str
) -> None:
    base = base_in(family, dtype)
    tuned = tune(base, dtype, shard="30KB")
    found = extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tuned)))
    package = read_package(found.folder)
    assert (package.delta.value_kind, package.delta.value_dtype) == ("set", dtype)
    check_backbone(package.manifest, load_backbone(str(base)))
    materialize(package, open_checkpoint(str(base)), tmp_path / "again")  # by default in its own dtype
    assert bits(weights(tmp_path / "again")) == bits(weights(tuned))


@pytest.mark.parametrize(("stored", "dtype"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_checkpoint_tuned_in_another_dtype_is_compared_in_its_own(
    base_in: Base, tune: Tune, weights: Weights, task: TaskSpec, tmp_path: Path, stored: str, dtype: str
) -> None:
    base = base_in("bert", stored)
    tuned = tune(base, dtype)
    found = extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tuned)))
    assert 0.05 < found.manifest.delta.density < 0.12  # rounding alone is no change
    materialize(read_package(found.folder), open_checkpoint(str(base)), tmp_path / "again", dtype=dtype)
    assert bits(weights(tmp_path / "again")) == bits(weights(tuned))


@pytest.mark.parametrize(("share", "pays"), [(0.05, True), (0.9, False)])
def test_the_report_says_what_changed_and_whether_a_sparse_file_pays(
    base_in: Base, tune: Tune, task: TaskSpec, tmp_path: Path, share: float, pays: bool
) -> None:
    base = base_in("bert", "float16")
    found = extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tune(base, "float16", share))))
    assert found.pays is pays
    assert found.sparse_bytes == (found.folder / "delta.safetensors").stat().st_size
    assert found.dense_bytes == 2 * found.manifest.backbone.parameters
    assert sum(layer.changed for layer in found.layers) == found.manifest.delta.nnz
    assert {layer.part for layer in found.layers} == {"embeddings", "encoder.layer.0", "encoder.layer.1", "pooler"}
    assert found.manifest.lineage.checkpoint == "tuned"
    assert found.manifest.lineage.checkpoint_digest == open_checkpoint(str(tmp_path / "tuned")).fingerprint


def test_the_largest_changes_are_kept_and_what_they_cover_is_told(
    base_in: Base, tune: Tune, weights: Weights, task: TaskSpec, tmp_path: Path
) -> None:
    base = base_in("bert", "float32")
    tuned = tune(base, share=0.5)
    found = extract_largest(wanted(base, task, tmp_path), open_checkpoint(str(tuned)), lambda n: n // 50, "float32")
    package, before, after = read_package(found.folder), weights(base), weights(tuned)
    changes = {name: after[f"bert.{name}"] - before[name] for name in before if f"bert.{name}" in after}
    order = torch.cat([change.flatten().abs() for change in changes.values()]).sort(descending=True).values
    total = sum(change.numel() for change in changes.values())
    assert package.delta.nnz == total // 50
    for name, part in package.delta.parameters.items():
        assert torch.equal(part.values, changes[name].flatten()[part.indices])
        assert float(part.values.abs().min()) >= float(order[total // 50 - 1])
    assert found.kept == pytest.approx(float(order[: total // 50].square().sum() / order.square().sum()), rel=1e-4)
    assert all(0 <= layer.kept <= 1 for layer in found.layers)
    check_backbone(package.manifest, load_backbone(str(base)))
    assert set(package.head) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "student.encoder."])
def test_a_prefix_before_all_names_is_seen_through(
    base_in: Base, tune: Tune, weights: Weights, rewrite: Rewrite, task: TaskSpec, tmp_path: Path, prefix: str
) -> None:
    base = base_in("bert", "float32")
    tuned = tune(base)
    plain = weights(tuned)
    rewrite(tuned, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    found = extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tuned)))
    materialize(read_package(found.folder), open_checkpoint(str(base)), tmp_path / "again")
    assert bits(weights(tmp_path / "again")) == bits(plain)


INNER = [
    "encoder._orig_mod.",
    "encoder.layer.0.module.",
    "encoder._fsdp_wrapped_module.layer.1._checkpoint_wrapped_module.",
]


@pytest.mark.parametrize("inner", INNER)
def test_wrappers_inside_names_are_seen_through_and_told(
    base_in: Base, tune: Tune, weights: Weights, rewrite: Rewrite, task: TaskSpec, tmp_path: Path, inner: str
) -> None:
    base = base_in("bert", "float32")
    tuned = tune(base)
    plain = weights(tuned)
    parts = [part for part in inner.split(".") if part]
    model = ".".join(part for part in parts if not part.startswith("_") and part != "module") + "."
    rewrite(tuned, lambda tensors: {name.replace(model, inner): tensor for name, tensor in tensors.items()})
    found = extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tuned)))
    materialize(read_package(found.folder), open_checkpoint(str(base)), tmp_path / "again")
    assert bits(weights(tmp_path / "again")) == bits(plain)
    assert found.notes and all("were read without it" in note for note in found.notes)


def test_old_layer_norm_names_and_a_base_with_a_prefix_are_found_too(
    base_in: Base, tune: Tune, weights: Weights, rewrite: Rewrite, task: TaskSpec, tmp_path: Path
) -> None:
    import shutil

    base = tmp_path / "renamed"
    shutil.copytree(base_in("bert", "float32"), base)
    tuned = tune(base)
    plain = weights(tuned)
    rewrite(base, lambda tensors: {f"bert.{name}": tensor for name, tensor in tensors.items()})

    def old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        spelled = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in tensors.items()}
        return {n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in spelled.items()}

    rewrite(tuned, old)
    found = extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tuned)))
    materialize(read_package(found.folder), open_checkpoint(str(base)), tmp_path / "again")
    assert bits(weights(tmp_path / "again")) == bits(plain)


def test_a_pooler_that_the_backbone_lacks_belongs_to_the_head(
    base_in: Base, tune: Tune, weights: Weights, rewrite: Rewrite, task: TaskSpec, tmp_path: Path
) -> None:
    import shutil

    base = tmp_path / "without"
    shutil.copytree(base_in("bert", "float32"), base)
    rewrite(base, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("pooler.")})
    tuned = tune(base)
    found = extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tuned)))
    package = read_package(found.folder)
    assert {n for n in package.head if "pooler" in n} == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    materialize(package, open_checkpoint(str(base)), tmp_path / "again")
    assert bits(weights(tmp_path / "again")) == bits(weights(tuned))


def test_position_ids_and_the_like_are_no_weights(
    base_in: Base, tune: Tune, rewrite: Rewrite, task: TaskSpec, tmp_path: Path
) -> None:
    base = base_in("bert", "float32")
    tuned = tune(base)
    rewrite(tuned, lambda tensors: {**tensors, "bert.embeddings.position_ids": torch.arange(9)})
    assert extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tuned))).unused == ()


def test_another_head_is_refused_by_name_unless_it_may_be_left_out(
    base_in: Base, tune: Tune, rewrite: Rewrite, task: TaskSpec, tmp_path: Path
) -> None:
    base = base_in("bert", "float32")
    tuned = tune(base)
    rewrite(tuned, lambda tensors: {**tensors, "cls.predictions.bias": torch.ones(3)})
    checkpoint = open_checkpoint(str(tuned))
    with pytest.raises(BackboneError, match=r"neither the backbone nor the task's head.*cls\.predictions\.bias"):
        extract_lossless(wanted(base, task, tmp_path), checkpoint)
    assert not (tmp_path / "package").exists()
    found = extract_lossless(wanted(base, task, tmp_path, drop=("cls.*",)), checkpoint)
    assert found.unused == ("cls.predictions.bias",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if "layer.1.output.dense.bias" not in n}, "lacks the backbone's"),
        (lambda t: {n: v for n, v in t.items() if n != "classifier.bias"}, "lacks the head's 'classifier.bias'"),
        (lambda t: {n: v[:-1] if "word_embeddings" in n else v for n, v in t.items()}, "is not what this backbone"),
        (lambda t: {n: v[:2] if n.startswith("classifier") else v for n, v in t.items()}, "is not what this backbone"),
        (lambda t: {f"x.{i}": v for i, v in enumerate(t.values())}, "are not those of this backbone"),
        (lambda t: {n: v.half() if "layer.0" in n else v for n, v in t.items()}, "in several dtypes"),
        (lambda t: t | {f"_orig_mod.{n}": v.clone() for n, v in t.items()}, "twice, with and without a wrapper's name"),
        (lambda t: t | {f"teacher.{n}": v.clone() for n, v in t.items()}, "holds two such models"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    base_in: Base, tune: Tune, rewrite: Rewrite, task: TaskSpec, tmp_path: Path, change: Any, message: str
) -> None:
    base = base_in("bert", "float32")
    tuned = tune(base)
    rewrite(tuned, change)
    with pytest.raises(SparsehubError, match=message):
        extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tuned)))
    assert not (tmp_path / "package").exists()
    assert not list(tmp_path.glob(".sparsehub*"))


def test_several_dtypes_are_no_obstacle_to_the_largest_changes(
    base_in: Base, tune: Tune, rewrite: Rewrite, task: TaskSpec, tmp_path: Path
) -> None:
    base = base_in("bert", "float32")
    tuned = tune(base)
    rewrite(tuned, lambda t: {n: v.half() if "layer.0" in n else v for n, v in t.items()})
    found = extract_largest(wanted(base, task, tmp_path), open_checkpoint(str(tuned)), lambda _: 50, "float16")
    assert found.manifest.delta.nnz == 50


def test_values_that_are_no_numbers_are_refused(
    base_in: Base, tune: Tune, rewrite: Rewrite, task: TaskSpec, tmp_path: Path
) -> None:
    base = base_in("bert", "float32")
    tuned = tune(base)

    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["bert.pooler.dense.bias"][3] = float("nan")
        return tensors

    rewrite(tuned, spoil)
    with pytest.raises(DeltaError, match=r"'pooler\.dense\.bias' holds values that are not finite"):
        extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tuned)))


def test_a_checkpoint_that_was_not_tuned_has_nothing_to_package(
    base_in: Base, tune: Tune, task: TaskSpec, tmp_path: Path
) -> None:
    base = base_in("bert", "float32")
    with pytest.raises(DeltaError, match="changes nothing"):
        extract_lossless(wanted(base, task, tmp_path), open_checkpoint(str(tune(base, share=0.0))))


def test_the_task_is_what_the_checkpoint_says_or_what_is_told(base_in: Base, tune: Tune, tmp_path: Path) -> None:
    tuned = tune(base_in("bert", "float32"))
    found = task_of(TaskHints(), tuned)
    assert (found.kind, found.labels, found.text_fields) == ("text-classification", ("bad", "fair", "good"), ("text",))
    told = task_of(TaskHints(labels=("a", "b", "c"), text=("q", "a"), max_length=7), tuned)
    assert (told.labels, told.text_fields, told.max_length) == (("a", "b", "c"), ("q", "a"), 7)
    config = json.loads((tuned / "config.json").read_text())
    for change, kind in (
        ({"architectures": ["BertForTokenClassification"]}, "token-classification"),
        ({"problem_type": "regression"}, "regression"),
        ({"id2label": {"0": "score"}}, "regression"),
        ({"problem_type": "multi_label_classification"}, "multi-label-classification"),
    ):
        (tuned / "config.json").write_text(json.dumps({**config, **change}))
        assert task_of(TaskHints(), tuned).kind == kind
    for change, message in (
        ({"architectures": ["BertModel"]}, "does not say what kind of task"),
        ({"problem_type": "multi_label_classification", "thresholds": [0.5]}, "thresholds are not those of its labels"),
        ({"problem_type": "multi_label_classification", "thresholds": [2.0] * 3}, "thresholds are not those"),
    ):
        (tuned / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UsageError, match=message):
            task_of(TaskHints(), tuned)
    with pytest.raises(UsageError, match="nothing says what the labels are"):
        task_of(TaskHints(kind="text-classification"), None)
    with pytest.raises(UsageError, match="choices belong to"):
        task_of(TaskHints(kind="multiple-choice"), None)


LARGE = """
import sys
from pathlib import Path
from sparsehub.backbone import open_checkpoint
from sparsehub.convert import checkpoint_pair, extract
from sparsehub.convert.extract import Extraction, extract_largest, extract_lossless
from sparsehub.package.task_spec import (TaskSpec)

folder, mode = Path(sys.argv[1]), sys.argv[2]
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024
task = TaskSpec("text-classification", ("a", "b"), "single_label_classification", ("text",), "label", 8, ("accuracy",))
base, tuned = (open_checkpoint(str(folder / name)) for name in ("base", "tuned"))
wanted = Extraction(base, task, folder / mode, "large")
extract.layout_of(base, task)  # what transformers brings in
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
if mode == "lossless":
    found = extract_lossless(wanted, tuned)
else:
    found = extract_largest(wanted, tuned, lambda n: n // 200, "float16")
print(memory("VmHWM") - before, found.manifest.delta.nnz)
"""


@pytest.fixture(scope="module")
def large_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding of 32 MiB in bfloat16, nine in ten of whose entries changed; both checkpoints are sharded."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("large")
    words = {word: place for place, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"))}
    config = BertConfig(
        vocab_size=1 << 16, hidden_size=256, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    torch.manual_seed(0)
    model = BertModel(config).bfloat16()
    model.save_pretrained(folder / "base", max_shard_size="30MB")
    BertTokenizer(vocab=words).save_pretrained(folder / "base")
    tuned = BertForSequenceClassification(config).bfloat16()
    tuned.bert.load_state_dict(model.state_dict())
    with torch.no_grad():
        weight = tuned.bert.embeddings.word_embeddings.weight
        weight.mul_(torch.where(torch.rand_like(weight) < 0.9, 1.5, 1.0))
    tuned.save_pretrained(folder / "tuned", max_shard_size="30MB")
    assert all(len(list((folder / name).glob("model-*.safetensors"))) == 2 for name in ("base", "tuned"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lossless", "largest"])
def test_a_pair_of_large_tensors_needs_less_memory_than_two_of_them(
    large_pair: Path, tmp_path: Path, mode: str
) -> None:
    command = [sys.executable, "-c", LARGE, str(large_pair), mode]
    nothing_known = {**os.environ, "SPARSEHUB_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=nothing_known)
    peak, nnz = done.stdout.split()
    assert int(nnz) > (12_000_000 if mode == "lossless" else 80_000)
    assert float(peak) < 2 * 32, done.stdout
