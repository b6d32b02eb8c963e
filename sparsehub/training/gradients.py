"""Gradients of the calibration rows, for the selection rules that ask for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsehub.package.embedding_model import EmbeddingModel
from sparsehub.package.task_model import TaskModel
from sparsehub.training.activation_checkpointing import checkpointed_activations
from sparsehub.training.metrics import IGNORED

# Tokens of one pass. Gradients of all candidates lie in memory, and the activations of a pass come on top: on a CPU a
# few hundred tokens keep the cores busy as well as many.
PASS_TOKENS = {"cpu": 256, "cuda": 4096}
CLIP = 1.0  # the norm to which `clipped_gradients` cuts a batch's gradient
Batch = Mapping[str, Tensor]
OnBatch = Callable[[], None]


def summed_gradients(
    task_model: TaskModel, batches: Iterable[Batch], names: Iterable[str], on_batch: OnBatch
) -> dict[str, Tensor]:
    """By parameter name, the gradients of each batch's mean loss, summed over the batches.

    Dropout is off. Parameters that the loss does not reach have a gradient of zero. A batch is cut into passes of about
    `PASS_TOKENS` tokens, which changes nothing but the memory.
    """
    wanted = candidates_named(task_model, names)
    task_model.model.eval()
    with requires_grad(wanted.values(), True), requires_grad(head_of(task_model).values(), False):
        for batch in batches:
            for part, share in passes(on_device(batch, task_model), pass_tokens(task_model, PASS_TOKENS)):
                (task_model.model(**part).loss * share).backward()
            on_batch()
    gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in wanted.items()}
    for parameter in wanted.values():
        parameter.grad = None
    return gradients


def clipped_gradients(
    task_model: TaskModel, batches: Iterable[Batch], names: Iterable[str], on_batch: OnBatch
) -> dict[str, Tensor]:
    """Like `summed_gradients` with dropout on, each batch's gradient over backbone and head cut to a norm of `CLIP`.

    A first backward pass adds up the norm and keeps no gradient, a second one, with the same dropout, adds the scaled
    gradients up: one dense gradient in memory, not two.
    """
    wanted, head = candidates_named(task_model, names), head_of(task_model)
    sums = {name: torch.zeros_like(parameter) for name, parameter in wanted.items()}
    squares: list[Tensor] = []
    with requires_grad(wanted.values(), True), requires_grad(head.values(), True), with_dropout(task_model):
        for batch in batches:
            inputs = on_device(batch, task_model)
            squares.clear()
            with same_randomness(), each_gradient(wanted | head, lambda _, g: squares.append(g.square().sum())):
                task_model.model(**inputs).loss.backward()
            scale = min(1.0, CLIP / (float(torch.stack(squares).sum().sqrt()) + 1e-6))
            with each_gradient(wanted | head, _adder(sums, scale)):
                task_model.model(**inputs).loss.backward()
            on_batch()
    task_model.model.eval()
    return sums


def _adder(sums: Mapping[str, Tensor], scale: float) -> Callable[[str, Tensor], None]:
    def add(name: str, gradient: Tensor) -> None:
        if name in sums:  # the head's gradients count in the norm alone
            sums[name].add_(gradient, alpha=scale)

    return add


@contextlib.contextmanager
def each_gradient(parameters: Mapping[str, nn.Parameter], take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While the block runs, every gradient goes to `take` as soon as it is complete, and is freed."""

    def taker(name: str) -> Callable[[Tensor], None]:
        def hand_over(parameter: Tensor) -> None:
            assert parameter.grad is not None  # torch calls this hook only after it has accumulated one
            take(name, parameter.grad)
            parameter.grad = None

        return hand_over

    handles = [p.register_post_accumulate_grad_hook(taker(name)) for name, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def with_dropout(task_model: TaskModel) -> Iterator[None]:
    """Training mode, with activations recomputed where the model can: a whole batch in one pass must fit."""
    task_model.model.train()
    try:
        with checkpointed_activations(task_model.model):
            yield
    finally:
        task_model.model.eval()


@contextlib.contextmanager
def same_randomness() -> Iterator[None]:
    """What is drawn inside the block is drawn again after it."""
    devices: Sequence[int] = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def requires_grad(parameters: Iterable[nn.Parameter], wanted: bool) -> Iterator[None]:
    parameters = list(parameters)
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(wanted)
    try:
        yield
    finally:
        for parameter, was in zip(parameters, before, strict=True):
            parameter.requires_grad_(was)


def candidates_named(task_model: TaskModel, names: Iterable[str]) -> dict[str, nn.Parameter]:
    parameters = task_model.backbone.parameters
    return {name: parameters[name] for name in names}


def head_of(task_model: TaskModel) -> dict[str, nn.Parameter]:
    """The head's parameters, by their names in the task's model."""
    parameters = dict(task_model.model.named_parameters())
    return {name: parameters[name] for name in task_model.head}


def on_device(batch: Batch, task_model: TaskModel) -> dict[str, Tensor]:
    return {name: tensor.to(task_model.backbone.device) for name, tensor in batch.items()}


def pass_tokens(task_model: TaskModel, by_device: Mapping[str, int]) -> int:
    """Tokens of one pass; all of a batch where a row's loss depends on the others, as that of an embedding."""
    if isinstance(task_model.model, EmbeddingModel):
        return 1 << 62
    return by_device[task_model.backbone.device.type]


def passes(batch: Batch, tokens: int) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Parts of a batch, each with its share of the batch's mean: of the rows, or of the tokens that have a label."""
    labels = batch["labels"]
    counts = (labels != IGNORED).sum(1) if labels.ndim > 1 else torch.ones(len(labels))
    rows = max(1, tokens * len(labels) // batch["input_ids"].numel())
    for start in range(0, len(labels), rows):
        share = float(counts[start : start + rows].sum() / counts.sum())
        if share > 0:  # the mean over no label at all is not a number
            yield {name: tensor[start : start + rows] for name, tensor in batch.items()}, share
