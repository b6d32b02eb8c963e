"""Any selection rule as a training method: choose the entries once, then train them alone.

Cost: the rule's own (see its file in `sparsehub/selection/`), then forward and backward passes without the dense
gradients and moments of full fine-tuning.
"""

from __future__ import annotations

from torch import Tensor

from sparsehub.backbone.linear_weights import output_axes
from sparsehub.files import write_file
from sparsehub.memory import TRAINING, return_freed_memory
from sparsehub.selection import SelectionRequest, select
from sparsehub.tensorfile import load_tensors, tensor_bytes
from sparsehub.training.calibration import collect_statistics, warm_up_head
from sparsehub.training.config import DEFAULTS
from sparsehub.training.gradients import head_of
from sparsehub.training.job import Job, PreparedTraining
from sparsehub.training.methods.phases import set_head
from sparsehub.training.processes import from_the_first
from sparsehub.training.sparse_model import SparseModel

MASK_FILE = "selection.safetensors"
HEAD = "head."  # a warmed head is kept beside the mask, under this prefix


def prepare(job: Job) -> PreparedTraining:
    """A budget of zero trains the head alone; a resumed run reads the mask that it began with."""
    mask = chosen_entries(job) if job.budget else {}
    return_freed_memory(TRAINING)  # what the selection left
    return PreparedTraining(SparseModel(job.task_model, mask, sampled=job.sampled), job.epochs, mask)


def chosen_entries(job: Job) -> dict[str, Tensor]:
    """The mask, the same in every process. Where the head was warmed up for the selection, it is set to that."""
    kept = job.run / MASK_FILE
    found = from_the_first(job.processes, load_tensors(kept) if kept.is_file() else {})
    if not found:
        found = from_the_first(job.processes, _choose(job))
        if job.processes.first and found:
            write_file(kept, tensor_bytes(found))
    warmed = {name.removeprefix(HEAD): tensor for name, tensor in found.items() if name.startswith(HEAD)}
    set_head(head_of(job.task_model) if warmed else {}, warmed)
    return {name: tensor for name, tensor in found.items() if not name.startswith(HEAD)}


def _choose(job: Job) -> dict[str, Tensor]:
    config = job.config
    parameters = job.scope
    job.report(f"choosing {job.budget:,} entries by {config.method}")
    warm_up_head(job)
    statistics = collect_statistics(job, list(parameters))
    granularity = config.granularity or DEFAULTS["granularity"]
    request = SelectionRequest(
        parameters,
        job.budget,
        granularity,
        output_axes(job.task_model.backbone.module),
        config.seed,
        statistics,
        config.options,
    )
    mask = select(config.method, request)
    head = head_of(job.task_model) if config.head_steps else {}
    return mask | {HEAD + name: parameter.detach().cpu().clone() for name, parameter in head.items()}
