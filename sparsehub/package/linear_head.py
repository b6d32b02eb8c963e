"""Linear heads: one Linear on pooled states; training, evaluation and the engine compute them by these functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from sparsehub.errors import FormatError
from sparsehub.package.pooling import pool
from sparsehub.package.task_spec import COSINE, JOINT, MEAN, PAIRS, POOLINGS, HeadSpec, TaskSpec

WEIGHT, BIAS = "weight", "bias"  # a linear head's tensors


def features(head: HeadSpec, states: Tensor, mask: Tensor) -> Tensor:
    """What the Linear multiplies, in float32: [sequences, width], or [rows, features] of pairs that are read alone.

    states: [sequences, length, width]; mask: [sequences, length]. The two texts of a row that are read alone follow
    each other.
    """
    assert head.pooling is not None  # a linear head has one
    vectors = pool(head.pooling, states, mask)
    if head.normalize:
        lengths = vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        vectors = vectors / lengths.where(lengths.isfinite(), torch.nan)  # an infinite one must not end as zeros
    if head.pair == JOINT:
        return vectors
    u, v = vectors.view(-1, 2, vectors.shape[-1]).unbind(1)
    if head.pair == COSINE:
        return functional.cosine_similarity(u, v, dim=-1).unsqueeze(-1)
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


def width_of(head: HeadSpec, hidden: int) -> int:
    """How many features a row has. hidden: width of the backbone's states."""
    return {JOINT: hidden, COSINE: 1}.get(head.pair or JOINT, 4 * hidden)


def linear_shapes(task: TaskSpec, hidden: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a linear head's tensors, by name."""
    return {WEIGHT: (task.num_outputs, width_of(task.head, hidden)), BIAS: (task.num_outputs,)}


class LinearHead:
    """A task's linear head on the engine's device; `build_head` makes it. Raises `FormatError` for other tensors.

    Heads with equal `alike` can run together, as one product (`run_linear`).
    """

    def __init__(self, task: TaskSpec, tensors: Mapping[str, Tensor], hidden: int, device: torch.device):
        shapes, found = linear_shapes(task, hidden), {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != shapes:
            raise FormatError("the head does not fit the task", found=found, expected=shapes)
        self.spec = task.head
        self.weight, self.bias = (tensors[name].to(device, torch.float32, copy=True) for name in (WEIGHT, BIAS))
        head = (
            task.head
        )  # numbers, so that batches can be sorted by them; those of `HeadModel` begin with a positive one
        kind = (POOLINGS.index(head.pooling or MEAN), int(bool(head.normalize)), PAIRS.index(head.pair or JOINT))
        self.alike: tuple[int, ...] = (-1, *kind, *self.weight.shape)

    @property
    def pooling(self) -> str | None:
        """How it makes one vector of the backbone's states, all that it reads of them."""
        return self.spec.pooling

    @property
    def nbytes(self) -> int:
        """Bytes of the head's parameters."""
        return sum(parameter.nbytes for parameter in self.parameters)

    @property
    def parameters(self) -> list[Tensor]:
        """The head's own parameters."""
        return [self.weight, self.bias]


def run_linear(
    heads: Sequence[LinearHead], counts: Sequence[int], inputs: Mapping[str, Tensor], outputs: Any
) -> Tensor:
    """Scores of the rows of several tasks whose heads are alike: [rows, outputs], or [rows, choices].

    counts: sequences of each head, in order; inputs: the batch, [rows, length] or [rows, sequences, length].
    """
    mask = inputs["attention_mask"]
    its = features(heads[0].spec, outputs.last_hidden_state, mask.reshape(-1, mask.shape[-1]))
    if len(heads) == 1:
        scores = functional.linear(its, heads[0].weight, heads[0].bias)
    else:
        a_row = sum(counts) // len(its)  # sequences that make one row of features
        scores = _one_product(heads, its, [count // a_row for count in counts])
    return scores.view(len(mask), -1)


def _one_product(heads: Sequence[LinearHead], its: Tensor, counts: Sequence[int]) -> Tensor:
    padded = pad_sequence(list(its.split(list(counts))), batch_first=True)  # [heads, most rows, features]
    weights, biases = torch.stack([h.weight for h in heads]), torch.stack([h.bias for h in heads])
    scores = torch.baddbmm(biases.unsqueeze(1), padded, weights.transpose(1, 2))
    return torch.cat([part[:count] for part, count in zip(scores, counts, strict=True)])
