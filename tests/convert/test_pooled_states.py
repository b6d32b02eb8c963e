"""Extraction of tasks that read a base model's states: tuned sentence-transformers folders, and linear heads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file

import sparsehub
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine
from sparsehub.errors import UsageError
from sparsehub.package import read_package
from sparsehub.package.task_spec import HeadSpec

TEXTS = ["the quick fox", "a bad ending of a long and slow story"]
TinyTasks = Any


@pytest.fixture
def tuned(tiny_tasks: TinyTasks, tmp_path: Path) -> Callable[..., Path]:
    """tuned(head): a sentence-transformers folder that pools so, with weights other than the backbone's."""

    def make(head: HeadSpec) -> Path:
        folder = tiny_tasks.write("made", "embedding", fields=("a", "b"), seed=40, head=head)
        return Path(shutil.copytree(tiny_tasks.materialised(folder), tmp_path / "tuned"))

    return make


@pytest.mark.parametrize("head", [HeadSpec("none", "first", False), HeadSpec("none", "max", True)], ids=str)
def test_a_tuned_folder_becomes_an_embedding_with_its_own_vectors(
    tiny_tasks: TinyTasks, tuned: Callable[..., Path], tmp_path: Path, head: HeadSpec
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tuned(head)
    rows = tmp_path / "rows.jsonl"
    pairs = [(TEXTS[0], TEXTS[1], 1.0), (TEXTS[0], "a fox", 3.0), (TEXTS[1], "slow", 2.0)]
    rows.write_text("".join(json.dumps({"a": a, "b": b, "score": s}) + "\n" for a, b, s in pairs))
    found = sparsehub.extract(
        folder, tiny_tasks.folder, tmp_path / "out", name="vectors", text=("a", "b"), label="score", test=str(rows)
    )
    assert found.agreement is not None and found.agreement.agrees
    package = read_package(tmp_path / "out")
    assert (package.manifest.task.kind, package.manifest.task.head) == ("embedding", head)
    assert not package.head and set(package.manifest.metrics["test"]) == {"spearman", "pearson"}
    before = package.manifest.training["before_packaging"]["metrics"]["test"]
    assert package.manifest.metrics["test"] == pytest.approx(before, abs=1e-4)
    with Engine(load_backbone(str(tiny_tasks.folder), dtype=package.delta.value_dtype)) as engine:
        engine.add(package)
        vectors = torch.tensor([future.result(30) for future in engine.embed("vectors", TEXTS).futures])
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(TEXTS)
    torch.testing.assert_close(vectors, torch.tensor(theirs), atol=1e-4, rtol=0)


def test_a_module_that_no_package_holds_is_refused(
    tiny_tasks: TinyTasks, tuned: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tuned(HeadSpec("none", "mean", True))
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="no such module of an embedding; found: Dense"):
        sparsehub.extract(folder, tiny_tasks.folder, tmp_path / "out", name="vectors")


def lora(tiny_tasks: TinyTasks, folder: Path) -> Path:
    """Trained on the base model, as a linear head has it: it has no head to save."""
    from transformers import AutoModel

    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(AutoModel.from_pretrained(tiny_tasks.folder), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["text-classification", "multi-label-classification"])
def test_a_lora_gets_the_linear_head_of_the_package_that_describes_its_task(
    tiny_tasks: TinyTasks, tmp_path: Path, kind: str
) -> None:
    head = HeadSpec("linear", "mean", False, "joint")
    described = read_package(tiny_tasks.write("described", kind, seed=41, head=head))
    adapter, task = lora(tiny_tasks, tmp_path / "lora"), described.manifest.task
    total = described.manifest.backbone.parameters
    found = sparsehub.extract(
        adapter, tiny_tasks.folder, tmp_path / "out", name="topic", task=task, head=described.head, nnz=total,
        value_dtype="float32",
    )  # fmt: skip
    assert found.agreement is not None and found.agreement.agrees and "PEFT" in found.agreement.against
    package = read_package(tmp_path / "out")
    assert package.manifest.task == task
    assert {n: t.tolist() for n, t in package.head.items()} == {n: t.tolist() for n, t in described.head.items()}
    with pytest.raises(UsageError, match=r"the task's linear head is not here.*--task-of"):
        sparsehub.extract(adapter, tiny_tasks.folder, tmp_path / "none", name="topic", task=task, nnz=99)
    own = {name: tensor + 1 for name, tensor in described.head.items()}
    save_file(own, adapter / "head.safetensors")
    sparsehub.extract(
        adapter, tiny_tasks.folder, tmp_path / "own", name="topic", task=task, head=described.head, nnz=99
    )
    kept = read_package(tmp_path / "own").head
    assert all(torch.equal(kept[name], own[name]) for name in own), "the head that was trained with it comes first"


def test_a_tuned_base_model_gets_that_head_too(
    tiny_tasks: TinyTasks, tuned: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tuned(HeadSpec("none", "mean", True))
    head = HeadSpec("linear", "mean", True, "joint")
    described = read_package(tiny_tasks.write("described", labels=4, seed=42, head=head))
    found = sparsehub.extract(
        folder, tiny_tasks.folder, tmp_path / "out", name="topic", task=described.manifest.task, head=described.head
    )
    assert found.agreement is not None and found.agreement.agrees
    assert read_package(tmp_path / "out").manifest.task == described.manifest.task
