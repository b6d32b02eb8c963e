"""Full fine-tuning: every weight of the backbone may change.

Formula: AdamW on all entries in scope; the package keeps the `density` or `nnz` largest changes, by default all.
Source: the `Full Tuning` baseline of Fu et al., AAAI 2023.
Cost: the change, its gradient and two moments of every entry, in float32, beside the weights and a copy of them. A
package of all entries is as large as the backbone in float32: `lt-sft` trains again what a smaller budget keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsehub.training.dense import DenseModel
from sparsehub.training.job import Job, PreparedTraining

defaults: Mapping[str, Any] = {"density": 1.0, "learning_rate": 1e-4}
options: Mapping[str, Any] = {}


def prepare(job: Job) -> PreparedTraining:
    """Everything in scope is trained."""
    return PreparedTraining(DenseModel(job.task_model, job.scope, job.budget), job.epochs, {})
