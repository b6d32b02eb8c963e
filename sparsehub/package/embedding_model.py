"""A backbone whose pooled states are the answer, as a model of transformers: for training and evaluation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput

from sparsehub.package.pooled_model import PooledModel
from sparsehub.package.pooling import vectors_of

SCALE = 20.0  # of cosines in both losses, as sentence-transformers has it


class EmbeddingModel(PooledModel):
    """A backbone with pooling and no parameters of its own: what `load_task_model` gives for embeddings."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Tensor) -> SequenceClassifierOutput:
        """`logits` are the vectors: [rows, texts, width], or [rows, width] of single texts; and the loss of the batch.

        input_ids: [rows, texts, length], or [rows, length]. labels: [rows] scores of two texts each, or [rows, texts]
        an id for each text, equal for equal texts: an anchor, what fits it and, of triplets, what does not.
        """
        vectors = vectors_of(self.task.head, *self.states(input_ids, **inputs)).view(*input_ids.shape[:-1], -1)
        loss = None if labels is None else similarity_loss(vectors, labels)
        return SequenceClassifierOutput(loss=loss, logits=vectors)


def similarity_loss(vectors: Tensor, labels: Tensor) -> Tensor:
    """The loss of a batch; vectors and labels as `EmbeddingModel.forward` has them. It is that of the whole batch: of a
    row alone there is nothing to tell it from."""
    return ranking_loss(vectors, labels) if labels.ndim == 2 else cosent_loss(vectors, labels)


def ranking_loss(vectors: Tensor, ids: Tensor) -> Tensor:
    """Cross entropy of each anchor's cosines with what fits it, among all other texts of the batch but the anchors.

    -log(exp(s cos(a_i, p_i)) / sum_j exp(s cos(a_i, c_j))), c: what fits any row, and of triplets what does not. A text
    that equals the row's anchor or what fits it is no negative, nor is what fits an equal anchor.
    Source: multiple negatives ranking; Henderson et al., "Efficient Natural Language Response Suggestion", 2017.
    """
    units, rows = functional.normalize(vectors.float(), dim=-1), torch.arange(len(vectors), device=vectors.device)
    scores = SCALE * units[:, 0] @ units[:, 1:].transpose(0, 1).flatten(0, 1).T  # [rows, rows * (texts - 1)]
    anchors, fits, candidates = ids[:, :1], ids[:, 1:2], ids[:, 1:].T.flatten()
    excluded = (candidates == fits) | (candidates == anchors)
    excluded[:, : len(ids)] |= anchors == anchors.T
    excluded[rows, rows] = False
    return functional.cross_entropy(scores.masked_fill(excluded, -torch.inf), rows)


def cosent_loss(vectors: Tensor, scores: Tensor) -> Tensor:
    """log(1 + sum over pairs of rows whose scores are y_i > y_j of exp(s (cos_j - cos_i))).

    Source: CoSENT; Su, 2022, as sentence-transformers' `CoSENTLoss` has it.
    """
    cosines = SCALE * functional.cosine_similarity(vectors[:, 0].float(), vectors[:, 1].float(), dim=-1)
    wrong = (cosines.unsqueeze(0) - cosines.unsqueeze(1))[scores.unsqueeze(1) > scores.unsqueeze(0)]
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), 0)
