"""Fine-tuned checkpoints of tiny models: weights changed here and there, a head, any dtype, any number of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.package.task_spec import TaskSpec

LABELS = ("bad", "fair", "good")
TASK = TaskSpec("text-classification", LABELS, "single_label_classification", ("text",), "label", 24, ("accuracy",))
Tune = Callable[..., Path]


@pytest.fixture
def task() -> TaskSpec:
    return TASK


@pytest.fixture
def base_in(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str, str], Path]:
    """base_in(family, dtype): the tiny base model stored in that dtype."""

    def base(family: str, dtype: str) -> Path:
        from transformers import AutoModel, AutoTokenizer

        if dtype == "float32":
            return tiny_checkpoint(family)
        folder = tmp_path / f"{family}-{dtype}"
        if not folder.exists():
            AutoModel.from_pretrained(tiny_checkpoint(family), dtype=getattr(torch, dtype)).save_pretrained(folder)
            AutoTokenizer.from_pretrained(tiny_checkpoint(family)).save_pretrained(folder)
        return folder

    return base


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """tune(base, dtype, share, shard): a classifier on `base` in which a share of every tensor changed."""

    def make(base: Path, dtype: str = "float32", share: float = 0.1, shard: str = "5GB", name: str = "tuned") -> Path:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(11)
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            dtype=getattr(torch, dtype),
            num_labels=3,
            id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
            pad_token_id=AutoTokenizer.from_pretrained(base).pad_token_id or 0,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                change = torch.randn_like(parameter.float()) * 0.05
                parameter.add_((change * (torch.rand_like(change) < share)).to(parameter.dtype))
        folder = tmp_path / name
        model.save_pretrained(folder, max_shard_size=shard)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        return folder

    return make


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


@pytest.fixture
def weights() -> Callable[[Path], dict[str, Tensor]]:
    """weights(folder): every tensor of a checkpoint."""
    return _weights


def _rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
    from safetensors.torch import save_file

    tensors = change(_weights(folder))
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.fixture
def rewrite() -> Callable[[Path, Callable[[dict[str, Tensor]], dict[str, Any]]], None]:
    """rewrite(folder, change): the checkpoint with other tensors, in one file."""
    return _rewrite
