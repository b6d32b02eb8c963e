"""Packages for a tiny backbone, without training: a random delta, a random head, and what plain transformers says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_LENGTH = 48  # of the tasks; the tiny backbone itself takes 64


@dataclass(frozen=True)
class TinyTasks:
    """A checkpoint folder and a place for packages made for it."""

    folder: Path
    root: Path

    def write(
        self,
        name: str,
        kind: str = "text-classification",
        *,
        labels: int = 3,
        fields: tuple[str, ...] = ("text",),
        version: str = "1.0.0",
        seed: int = 0,
        backbone: Path | None = None,
        max_length: int = MAX_LENGTH,
        per_parameter: int = 12,
        scale: float = 0.5,
        head: Any = None,
        delta: bool = True,
    ) -> Path:
        """Write a package of random entries in every matrix of the backbone, large enough to change answers.

        head: its `HeadSpec`, by default that of transformers; delta: False for a head alone.
        """
        import torch

        from sparsehub.backbone import open_checkpoint
        from sparsehub.delta import Delta
        from sparsehub.package import write_package
        from sparsehub.package.task_model import load_task_model
        from tests.support.packages import write_bare_package

        out = self.root / f"{name}-{version}-{seed}-{kind}-{labels}{_suffix(head, delta)}"
        if out.exists():
            return out
        task = _spec(kind, labels, fields, max_length)
        if head is not None:
            task = dataclasses.replace(task, head=head)
        torch.manual_seed(seed)
        task_model = load_task_model(open_checkpoint(str(backbone or self.folder)), task)
        tensors, change = _random_head(task_model, scale), _random_delta(task_model.backbone, per_parameter, scale)
        draft = _draft(name, version, task, task_model.backbone, change)
        if delta:
            write_bare_package(out, draft, change, tensors, f"# {name}\n", {})
        else:
            write_package(out, dataclasses.replace(draft, delta=None), Delta({}), tensors)
        return out

    def read(self, name: str, kind: str = "text-classification", **options: Any) -> Any:
        """Write a package and read it."""
        from sparsehub.package import read_package

        return read_package(self.write(name, kind, **options))

    def reference(self, package: Path) -> Callable[[Any], list[float]]:
        """The materialised model under plain transformers: one input to its flat scores (or its value)."""
        from sparsehub.package import read_manifest

        return _plain(self.materialised(package), read_manifest(package).task)

    def materialised(self, package: Path) -> Path:
        """The folder of the checkpoint that a package makes of the backbone."""
        from sparsehub.backbone import open_checkpoint
        from sparsehub.package import read_package
        from sparsehub.package.materialize import materialize

        out = package.with_name(package.name + "-materialised")
        if not out.exists():
            materialize(read_package(package), open_checkpoint(str(self.folder)), out)
        return out


def tiny_speakers(llama: Path, root: Path) -> TinyTasks:
    """A language model of random weights in a new folder of `root`, and a maker of tasks for it. llama: its config and
    tokenizer."""
    import transformers

    folder = root / "model"
    transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(llama)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
    return TinyTasks(folder, root)


def _suffix(head: Any, delta: bool) -> str:
    known = "" if head is None else f"-{head.type}-{head.pooling}-{head.normalize}-{head.pair}"
    return known + ("" if delta else "-no-delta")


def _random_head(task_model: Any, scale: float) -> dict[str, Any]:
    import torch

    return {
        key: torch.randn_like(parameter) * scale
        for key, parameter in task_model.model.named_parameters()
        if key in task_model.head
    }


def _random_delta(backbone: Any, per_parameter: int, scale: float) -> Any:
    import torch

    from sparsehub.delta import Delta, ParameterDelta

    parts = {}
    for key, slot in backbone.arena.slots.items():
        count = min(per_parameter, slot.numel)
        indices = torch.randperm(slot.numel)[:count].sort().values
        parts[key] = ParameterDelta(slot.shape, indices, torch.randn(count) * scale)
    return Delta(parts, "add", "float32")


def _spec(kind: str, labels: int, fields: tuple[str, ...], max_length: int) -> Any:
    from sparsehub.package import TaskSpec
    from sparsehub.package.task_spec import PROBLEM_TYPES

    names = {"regression": (), "text-generation": (), "embedding": (), "multiple-choice": ("choice1", "choice2")}.get(
        kind, tuple(f"label{i}" for i in range(labels))
    )
    return TaskSpec(
        kind=kind,
        labels=names,
        problem_type=PROBLEM_TYPES[kind],
        text_fields=fields,
        label_field="label",
        max_length=max_length,
        metrics=("accuracy",),
        choice_fields=names if kind == "multiple-choice" else (),
        thresholds=tuple(0.3 + 0.1 * i for i in range(labels)) if kind == "multi-label-classification" else (),
    )


def _draft(name: str, version: str, task: Any, backbone: Any, delta: Any) -> Any:
    from sparsehub.package import Manifest
    from sparsehub.package.manifest import BackboneRef, DeltaRecord, TouchedParameter
    from sparsehub.package.task_spec import FORMAT_2_KINDS

    checkpoint, total = backbone.checkpoint, backbone.arena.numel
    touched = {
        key: TouchedParameter(part.shape, backbone.digest_of(key), len(part.indices))
        for key, part in delta.parameters.items()
    }
    ref = BackboneRef("tiny/bert", "", backbone.architecture, checkpoint.dtype, checkpoint.fingerprint, total)
    record = DeltaRecord("random", delta.nnz / total, delta.nnz, delta.value_kind, delta.value_dtype, touched)
    return Manifest(
        1 if task.head.type != "linear" and task.kind not in FORMAT_2_KINDS else 2,
        name,
        version,
        task,
        ref,
        record,
        {},
        metrics={"test": {"accuracy": 0.5}},
    )


def _plain(folder: Path, task: Any) -> Callable[[Any], list[float]]:
    """transformers alone, one row at a time, no padding."""
    import torch
    import transformers

    auto = {
        "multiple-choice": "AutoModelForMultipleChoice",
        "token-classification": "AutoModelForTokenClassification",
    }.get(task.kind, "AutoModelForSequenceClassification")
    model = getattr(transformers, auto).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def answer(item: Any) -> list[float]:
        if task.kind == "multiple-choice":
            context = " ".join(item[field] for field in task.text_fields)
            choices = [item[field] for field in task.choice_fields]
            batch = tokenizer([context] * len(choices), choices, padding=True, return_tensors="pt")
            logits = model(**{key: value[None] for key, value in batch.items()}).logits[0]
            return torch.softmax(logits, -1).tolist()
        if task.kind == "token-classification":
            batch = tokenizer(item.split(), is_split_into_words=True, return_tensors="pt")
            places = [batch.word_ids().index(word) for word in range(len(item.split()))]
            return torch.softmax(model(**batch).logits[0, places], -1).flatten().tolist()
        texts = [item] if isinstance(item, str) else list(item)
        logits = model(**tokenizer(*texts, return_tensors="pt")).logits[0]
        if task.kind == "multi-label-classification":
            return torch.sigmoid(logits).tolist()
        return (logits if task.kind == "regression" else torch.softmax(logits, -1)).tolist()

    return answer


def flat(answer: Any) -> list[float]:
    """An engine's answer in the shape of `TinyTasks.reference`."""
    if answer.value is not None:
        return [answer.value]
    if answer.words:
        return [score for word in answer.words for score in word.scores]
    return list(answer.scores)
