"""Embeddings: what their rows are labelled by, and how good vectors are at ranking texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsehub.extras import require
from sparsehub.package.embedding_model import similarity_loss

SCORED = ("spearman", "pearson")  # metrics of pairs with a score
RANKED = ("ndcg_at_10", "recall_at_1", "recall_at_10")  # and of pairs and triplets without
BLOCK = 64  # rows whose loss is that of one batch
QUERIES = 256  # whose cosines are in memory at a time

Numbers = NDArray[Any]


def text_ids(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[list[int]]:
    """For each row, an id for each of its texts, equal for equal texts of the split."""
    known: dict[str, int] = {}
    return [[known.setdefault(row[field], len(known)) for field in fields] for row in rows]


def similarity_metrics(vectors: Numbers, targets: Numbers) -> dict[str, float]:
    """vectors: [rows, texts, width]; targets: [rows] scores, or [rows, texts] ids of texts.

    Scores: rank correlation and correlation of the cosines with them. Ids: every distinct anchor is a query, all other
    texts together what is searched, and right is whatever fits that anchor in some row.
    """
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return _correlations(units, targets) if targets.ndim == 1 else _retrieval(units, targets)


def _correlations(units: Numbers, scores: Numbers) -> dict[str, float]:
    stats = require("scipy.stats", "train")
    cosines = (units[:, 0].astype(np.float64) * units[:, 1]).sum(-1)
    if len(scores) < 2 or not np.ptp(cosines) or not np.ptp(scores):
        return dict.fromkeys(SCORED, 0.0)
    return {"spearman": stats.spearmanr(cosines, scores)[0], "pearson": stats.pearsonr(cosines, scores)[0]}


def _retrieval(units: Numbers, ids: Numbers) -> dict[str, float]:
    right: dict[int, set[int]] = defaultdict(set)
    for anchor, fits in ids[:, :2].tolist():
        right[anchor].add(fits)
    places = dict(zip(ids.flatten().tolist(), range(ids.size), strict=True))  # of one row that has the text
    flat, queries, corpus = units.reshape(ids.size, -1), list(right), sorted(set(ids[:, 1:].flatten().tolist()))
    documents = flat[[places[text] for text in corpus]]
    found = []
    for start in range(0, len(queries), QUERIES):
        part = queries[start : start + QUERIES]
        best = np.argsort(-(flat[[places[text] for text in part]] @ documents.T), axis=1, kind="stable")[:, :10]
        found += [
            _ranked([corpus[i] in right[q] for i in row], len(right[q]))
            for q, row in zip(part, best.tolist(), strict=True)
        ]
    return dict(zip(RANKED, np.mean(found, axis=0).tolist(), strict=True))


def _ranked(hits: Sequence[bool], right: int) -> tuple[float, float, float]:
    """nDCG at 10, recall at 1 and at 10 of one query. hits: of its ten best; right: how many texts fit it."""
    gains = 1 / np.log2(np.arange(2, 12))
    ideal = gains[: min(right, 10)].sum()
    return float(gains[: len(hits)] @ np.array(hits) / ideal), sum(hits[:1]) / right, sum(hits) / right


def similarity_mean_loss(vectors: Numbers, targets: Numbers) -> float:
    """The loss of batches of `BLOCK` rows in this order, a mean over the rows."""
    total = 0.0
    for start in range(0, len(vectors), BLOCK):
        block = torch.from_numpy(vectors[start : start + BLOCK]), torch.from_numpy(targets[start : start + BLOCK])
        total += float(similarity_loss(*block)) * len(block[0])
    return total / len(vectors)
