"""The head alone: nothing in the backbone changes, and the package has no delta.

Formula: the probe (`training/probe.py`) where the head is linear; else AdamW on the head of transformers.
Source: linear probing; Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
Cost: one forward pass over the rows, and a logistic regression or ridge; of a transformers head that of training it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsehub.training.job import Job, PreparedTraining
from sparsehub.training.methods.phases import set_head
from sparsehub.training.sparse_model import SparseModel

defaults: Mapping[str, Any] = {"density": 0.0}
options: Mapping[str, Any] = {}


def prepare(job: Job) -> PreparedTraining:
    """A model in which the head alone is trained."""
    model = SparseModel(job.task_model, {})
    if job.probe is None:
        return PreparedTraining(model, job.epochs, {})
    set_head(model.head, job.probe.tensors)  # it is fitted already
    return PreparedTraining(model, 0.0, {})
