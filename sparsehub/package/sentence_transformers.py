"""Writes models in sentence-transformers' format: a backbone for embeddings, or a linear head for its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsehub.backbone import Checkpoint
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.package.linear_head import BIAS, WEIGHT
from sparsehub.package.pooling import MODULES_FILE, POOLING_FILE, SWITCHES, pooling_of
from sparsehub.package.task_model import TaskModel
from sparsehub.package.task_spec import EMBEDDING, JOINT, HeadSpec, TaskSpec
from sparsehub.tensorfile import tensor_bytes

PAIR_FILE, PAIR_PAGE = "pair_head.safetensors", "README.md"
_TRANSFORMER, _POOLING, _NORMALIZE, _DENSE = "Transformer", "Pooling", "Normalize", "Dense"
_ALONE = {
    "separate": "np.concatenate([u, v, abs(u - v), u * v], axis=1)",
    "cosine": "((u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1))[:, None]",
}


def write_embedder(folder: Path, task_model: TaskModel, checkpoint: Checkpoint, task: TaskSpec) -> None:
    """Write the backbone of a task for embeddings: those of an embedding as its head says; of any other task pooled as
    the checkpoint says, else by the mean, unit vectors. Texts are cut at the task's limit.
    """
    pooling, normalize = pooling_of(checkpoint.folder), True
    if task.kind == EMBEDDING:
        pooling, normalize = task.head.pooling or pooling, bool(task.head.normalize)
    _write(folder, task_model, checkpoint, task.max_length, _pooling_config(pooling, task_model))
    _write_modules(folder, [_TRANSFORMER, _POOLING, *([_NORMALIZE] if normalize else [])])


def write_linear_model(folder: Path, task_model: TaskModel, checkpoint: Checkpoint, task: TaskSpec) -> None:
    """Write a task with a linear head: `encode` gives its logits.

    Where the texts of a pair are read alone, `encode` gives each text's vector, and a page beside it has the lines that
    make scores of two of them and the head's tensors.
    """
    head = task.head
    assert head.pooling is not None  # a linear head has one
    _write(folder, task_model, checkpoint, task.max_length, _pooling_config(head.pooling, task_model))
    modules = [_TRANSFORMER, _POOLING, *([_NORMALIZE] if head.normalize else [])]
    tensors = {
        name: parameter.detach() for name, parameter in task_model.model.named_parameters() if name in (WEIGHT, BIAS)
    }
    if head.pair == JOINT:
        _write_dense(folder / f"{len(modules)}_{_DENSE}", tensors)
        _write_modules(folder, [*modules, _DENSE])
        return
    (folder / PAIR_FILE).write_bytes(tensor_bytes(tensors))
    (folder / PAIR_PAGE).write_text(_pair_page(head, task))
    _write_modules(folder, modules)


def _write(folder: Path, task_model: TaskModel, checkpoint: Checkpoint, max_length: int, pooling: bytes) -> None:
    module: Any = task_model.backbone.module
    module.save_pretrained(folder)
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    (folder / POOLING_FILE).parent.mkdir()
    (folder / POOLING_FILE).write_bytes(pooling)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length}))


def _pooling_config(pooling: str, task_model: TaskModel) -> bytes:
    width = task_model.backbone.config.hidden_size
    switches = {switch: name == pooling for name, switch in SWITCHES.items()}
    return json.dumps({"word_embedding_dimension": width, **switches}).encode()


def _write_dense(folder: Path, tensors: dict[str, Any]) -> None:
    outputs, width = tensors[WEIGHT].shape
    config = {
        "in_features": width,
        "out_features": outputs,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(tensor_bytes({f"linear.{name}": t for name, t in tensors.items()}))


def _write_modules(folder: Path, kinds: list[str]) -> None:
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if index == 0 else f"{index}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / MODULES_FILE).write_text(json.dumps(modules))


def _pair_page(head: HeadSpec, task: TaskSpec) -> str:
    """How to use a head whose texts are read alone, without sparsehub."""
    columns = f"the columns are {', '.join(map(repr, task.labels))}" if task.labels else "one column, the value"
    return f"""# Scores of pairs

Each text of a pair is read alone. In this folder:

```python
import numpy as np
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

model, head = SentenceTransformer("."), load_file("{PAIR_FILE}")
u, v = model.encode(firsts), model.encode(seconds)  # two lists of texts
features = {_ALONE[head.pair or JOINT]}
scores = features @ head["weight"].T + head["bias"]  # {columns}
```
"""
