from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sparsehub.backbone import Checkpoint, open_checkpoint
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.errors import BackboneMismatchError, FormatError, SparsehubError, UsageError
from sparsehub.package import Package, read_package
from sparsehub.package.encoding import collate, encode
from sparsehub.package.manifest import BackboneRef, DeltaRecord, Manifest, TouchedParameter
from sparsehub.package.materialize import materialize
from sparsehub.package.task_model import auto_class, base_prefix, load_task_model
from sparsehub.package.task_spec import HEADED_KINDS, TaskSpec
from sparsehub.patch import apply_patch, make_patch, restore_patch
from tests.support.packages import write_bare_package

TinyCheckpoint = Callable[[str], Path]
MakeTask = Callable[..., TaskSpec]
TaskRows = dict[str, list[dict[str, Any]]]
MakePackage = Callable[..., Package]


@pytest.fixture
def make_package(tmp_path: Path) -> MakePackage:
    """make_package(checkpoint, task): a package that changes a tenth of the backbone and has a head of its own."""

    def make(checkpoint: Checkpoint, task: TaskSpec, value_dtype: str = "float16", head: Any = None) -> Package:
        torch.manual_seed(2)
        task_model = load_task_model(checkpoint, task)
        backbone, parts = task_model.backbone, {}
        for name, slot in list(backbone.arena.slots.items())[::2]:
            count = max(1, slot.numel // 10)
            indices = torch.randperm(slot.numel)[:count].sort().values
            parts[name] = ParameterDelta(slot.shape, indices, torch.randn(count).mul(0.3).half().float())
        delta = Delta(parts, "add", value_dtype)
        touched = {n: TouchedParameter(p.shape, backbone.digest_of(n), len(p.indices)) for n, p in parts.items()}
        total = backbone.arena.numel
        manifest = Manifest(
            2 if task.thresholds else 1,
            "tiny",
            "1.0.0",
            task,
            BackboneRef("tiny", "", backbone.architecture, "float32", checkpoint.fingerprint, total),
            DeltaRecord("random", delta.nnz / total, delta.nnz, "add", value_dtype, touched),
            files={},
        )
        own = {n: torch.randn_like(p) for n, p in task_model.model.named_parameters() if n in task_model.head}
        folder = tmp_path / "package"
        write_bare_package(folder, manifest, delta, own if head is None else head, "# tiny\n", {})
        return read_package(folder)

    return make


@torch.no_grad()
def patched_logits(package: Package, checkpoint: Checkpoint, batch: dict[str, Any], dtype: str) -> torch.Tensor:
    """Arena, patch and head, put together by hand."""
    task_model = load_task_model(checkpoint, package.manifest.task, dtype=dtype)
    parameters = dict(task_model.model.named_parameters())
    for name, tensor in package.head.items():
        parameters[name].copy_(tensor)
    before = task_model.backbone.arena.digest()
    patch = make_patch(task_model.backbone, package.delta)
    base = task_model.model(**batch).logits
    apply_patch(task_model.backbone.arena, patch)
    logits = task_model.model(**batch).logits
    assert (logits - base).abs().max() > 1e-3  # the delta matters
    restore_patch(task_model.backbone.arena, patch)
    assert task_model.backbone.arena.digest() == before
    return logits


@torch.no_grad()
def check(checkpoint: Checkpoint, package: Package, rows: list[dict[str, Any]], out: Path, dtype: str) -> None:
    """The folder, with transformers alone, gives the same logits as the package on its backbone."""
    task = package.manifest.task
    materialize(package, checkpoint, out, dtype=dtype)
    batch = collate(load_tokenizer(checkpoint), encode(task, load_tokenizer(checkpoint), rows))
    model = auto_class(task.kind).from_pretrained(out, dtype=getattr(torch, dtype)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    own = collate(tokenizer, encode(task, tokenizer, rows))
    assert all(torch.equal(own[name], batch[name]) for name in batch)
    assert torch.equal(model(**own).logits, patched_logits(package, checkpoint, batch, dtype))
    assert tokenizer.model_max_length == task.max_length
    assert model.config.num_labels == task.num_outputs
    assert model.config.problem_type == (None if task.kind == "multiple-choice" else task.problem_type)
    assert tuple(getattr(model.config, "thresholds", ())) == task.thresholds
    if task.kind in ("text-classification", "multi-label-classification", "token-classification"):
        assert model.config.id2label == dict(enumerate(task.labels))
        assert model.config.label2id == {label: i for i, label in enumerate(task.labels)}


@pytest.mark.parametrize("kind", HEADED_KINDS)
def test_the_folder_answers_as_the_package_does(
    tiny_checkpoint: TinyCheckpoint,
    make_task: MakeTask,
    make_package: MakePackage,
    task_rows: TaskRows,
    tmp_path: Path,
    kind: str,
) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint("bert")))
    check(checkpoint, make_package(checkpoint, make_task(kind)), task_rows[kind], tmp_path / "out", "float32")


@pytest.mark.parametrize("family", ["roberta", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2"])
def test_every_family_can_be_materialised(
    tiny_checkpoint: TinyCheckpoint,
    make_task: MakeTask,
    make_package: MakePackage,
    task_rows: TaskRows,
    tmp_path: Path,
    family: str,
) -> None:
    checkpoint, task = open_checkpoint(str(tiny_checkpoint(family))), make_task("text-classification")
    check(checkpoint, make_package(checkpoint, task), task_rows[task.kind], tmp_path / "out", "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_can_be_written_in_half_precision(
    tiny_checkpoint: TinyCheckpoint,
    make_task: MakeTask,
    make_package: MakePackage,
    task_rows: TaskRows,
    tmp_path: Path,
    dtype: str,
) -> None:
    checkpoint, task = open_checkpoint(str(tiny_checkpoint("bert"))), make_task("text-classification")
    check(checkpoint, make_package(checkpoint, task), task_rows[task.kind], tmp_path / "out", dtype)


def test_labels_reach_a_plain_pipeline(
    tiny_checkpoint: TinyCheckpoint, make_task: MakeTask, make_package: MakePackage, tmp_path: Path
) -> None:
    checkpoint, task = open_checkpoint(str(tiny_checkpoint("bert"))), make_task("text-classification")
    materialize(make_package(checkpoint, task), checkpoint, tmp_path / "out")
    pipeline = transformers.pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    assert pipeline("a good film")[0]["label"] in task.labels


@pytest.fixture
def package(tiny_checkpoint: TinyCheckpoint, make_task: MakeTask, make_package: MakePackage) -> Package:
    return make_package(open_checkpoint(str(tiny_checkpoint("bert"))), make_task("text-classification"))


def refused(package: Package, source: Path, tmp_path: Path, error: type[SparsehubError], message: str) -> None:
    with pytest.raises(error, match=message):
        materialize(package, open_checkpoint(str(source)), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"package", "other"}


def test_an_existing_folder_is_refused_and_left_as_it_is(
    package: Package, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(UsageError, match="exists already"):
        materialize(package, open_checkpoint(str(tiny_checkpoint("bert"))), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("touched", [True, False])
def test_a_backbone_with_one_bit_changed_is_refused(
    package: Package, tiny_checkpoint: TinyCheckpoint, tmp_path: Path, touched: bool
) -> None:
    source = shutil.copytree(tiny_checkpoint("bert"), tmp_path / "other")
    from sparsehub.tensorfile import read_header

    entries = read_header(source / "model.safetensors").entries
    name = next(name for name in entries if (name in package.delta.parameters) == touched)
    data = bytearray((source / "model.safetensors").read_bytes())
    data[entries[name].start] ^= 1
    (source / "model.safetensors").write_bytes(data)
    refused(package, source, tmp_path, BackboneMismatchError, "made for another backbone")


def test_a_backbone_of_another_architecture_is_refused(
    package: Package, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    refused(package, tiny_checkpoint("roberta"), tmp_path, BackboneMismatchError, "tiny")


@pytest.mark.parametrize(
    "head",
    [
        {"classifier.weight": torch.ones(4, 32), "classifier.bias": torch.ones(4)},
        {"classifier.weight": torch.ones(3, 32)},
        {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.ones(3), "more": torch.ones(1)},
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    tiny_checkpoint: TinyCheckpoint, make_task: MakeTask, make_package: MakePackage, tmp_path: Path, head: Any
) -> None:
    source = tiny_checkpoint("bert")
    package = make_package(open_checkpoint(str(source)), make_task("text-classification"), head=head)
    refused(package, source, tmp_path, FormatError, "the head does not fit the task's model")


def test_a_failure_while_writing_leaves_nothing(
    package: Package, tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, folder: Path) -> None:
        (Path(folder) / "half").write_text("x")
        raise OSError("disk full")

    monkeypatch.setattr(transformers.BertForSequenceClassification, "save_pretrained", broken)
    with pytest.raises(OSError, match="disk full"):
        materialize(package, open_checkpoint(str(tiny_checkpoint("bert"))), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"package"}


def test_the_head_is_the_packages_own(package: Package, tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    materialize(package, open_checkpoint(str(tiny_checkpoint("bert"))), tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert base_prefix(model) == "bert."
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in package.head.items())
