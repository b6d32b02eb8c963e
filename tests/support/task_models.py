"""Which task models transformers has, and batches for them: for tests of whole models and of heads alone."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor

from sparsehub.backbone import Checkpoint
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.package.encoding import collate, encode
from sparsehub.package.task_model import auto_class
from sparsehub.package.task_spec import HEADED_KINDS, TaskSpec

FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2"]


def has_model(family: str, kind: str) -> bool:
    """Whether transformers has a task model of this kind for the family."""
    return transformers.CONFIG_MAPPING[family] in auto_class(kind)._model_mapping


PAIRS = [(family, kind) for family in FAMILIES for kind in HEADED_KINDS if has_model(family, kind)]


def batch_of(checkpoint: Checkpoint, task: TaskSpec, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    tokenizer = load_tokenizer(checkpoint)
    return collate(tokenizer, encode(task, tokenizer, rows))
