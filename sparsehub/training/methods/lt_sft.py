"""LT-SFT (lottery ticket sparse fine-tuning): train everything, then train again only the entries that moved most.

Formula: mask = the k largest |W1 - W0| after full fine-tuning to W1; then W = W0 again, and the mask's entries are
trained from zero, with the head as it was drawn.
Source: Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022 (there both phases are as
long as a whole training).
Cost: the first phase is `full`, the second is any mask's.
Options: `first`, the share of the epochs that the first phase takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsehub.training.dense import DenseModel
from sparsehub.training.job import Job, PreparedTraining
from sparsehub.training.methods.phases import find_by_training, share
from sparsehub.training.sparse_model import SparseModel

defaults: Mapping[str, Any] = {"learning_rate": 5e-4}
options: Mapping[str, Any] = {"first": 0.5}


def prepare(job: Job) -> PreparedTraining:
    """Both phases together take the epochs of the run."""
    found = find_by_training(job, lambda: DenseModel(job.task_model, job.scope, job.budget))
    epochs = job.epochs * (1 - share(job))
    return PreparedTraining(
        SparseModel(job.task_model, found.mask, sampled=job.sampled), epochs, found.mask, found.steps
    )
