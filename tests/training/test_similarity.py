"""Embeddings: their losses and metrics against sentence-transformers' own, their data, and whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsehub.errors import DataError, UsageError
from sparsehub.package import read_package
from sparsehub.package.embedding_model import cosent_loss, ranking_loss
from sparsehub.package.manifest_builder import metric_names
from sparsehub.package.task_spec import EMBEDDING, PROBLEM_TYPES, HeadSpec, TaskSpec
from sparsehub.training import TrainConfig, train
from sparsehub.training.data import TaskData, load_data
from sparsehub.training.metrics import compute, mean_loss

Load = Callable[..., TaskData]
Write = Callable[..., str]
Configure = Callable[..., TrainConfig]
PAIRS = [
    {"a": f"a {mood} {thing}", "b": f"the {thing} was {mood}", "no": f"the {thing} was {other}", "label": float(i % 6)}
    for i, (mood, other, thing) in enumerate(
        [(m, o, t) for m, o in (("good", "bad"), ("bad", "good"), ("slow", "fun")) for t in ("film", "story", "cast")]
    )
]


def spec(scored: bool) -> TaskSpec:
    metrics = metric_names(EMBEDDING, 0, scored)
    return TaskSpec(EMBEDDING, (), PROBLEM_TYPES[EMBEDDING], ("a", "b"), "score" if scored else "", 24, metrics)


class GivenVectors(torch.nn.Module):
    """What sentence-transformers' losses take for a model: the vectors are in the features."""

    def __init__(self) -> None:
        super().__init__()
        self.similarity_fn_name = "cosine"

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}


def vectors(rows: int, texts: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, texts, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("texts", [2, 3])
def test_the_ranking_loss_is_that_of_sentence_transformers(texts: int) -> None:
    losses = pytest.importorskip("sentence_transformers.losses")
    given, ids = vectors(9, texts), torch.arange(9 * texts).view(9, texts)
    theirs = losses.MultipleNegativesRankingLoss(GivenVectors())
    wanted = theirs([{"vectors": given[:, i]} for i in range(texts)], None)
    torch.testing.assert_close(ranking_loss(given, ids), wanted)


def test_a_text_that_fits_is_no_negative() -> None:
    """Of equal texts, and of several that fit one anchor, each row counts as if the others were not there."""
    given = vectors(4, 2)
    given[1] = given[0]
    ids = torch.tensor([[0, 1], [0, 1], [2, 3], [0, 4]])
    alone = [ranking_loss(given[[row, 2]], ids[[row, 2]]) * 2 for row in (0, 1, 3)]  # each with row 2 as its negative
    both = ranking_loss(given, ids) * 4
    third = -torch.log_softmax(20 * torch.cosine_similarity(given[2, :1], given[:, 1]), 0)[2]
    firsts = [each - -torch.log_softmax(20 * torch.cosine_similarity(given[2, :1], given[[row, 2], 1]), 0)[1]
              for each, row in zip(alone, (0, 1, 3), strict=True)]  # fmt: skip
    torch.testing.assert_close(both, sum(firsts, third))
    given = vectors(2, 2).requires_grad_()
    ranking_loss(given, torch.tensor([[0, 1], [0, 1]])).backward()
    assert given.grad is not None and not given.grad.any() and given.grad.isfinite().all()


def test_the_score_loss_is_that_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.losses")
    given, scores = vectors(9, 2, 1), torch.tensor([0.0, 1, 2, 2, 5, 4, 3, 1, 0])
    wanted = losses.CoSENTLoss(GivenVectors())([{"vectors": given[:, i]} for i in range(2)], scores)
    torch.testing.assert_close(cosent_loss(given, scores), wanted)
    assert cosent_loss(given[:1], scores[:1]) == 0


class KnownVectors:
    """What sentence-transformers' evaluators take for a model: it knows the vector of every text."""

    def __init__(self, known: dict[str, Any]):
        self.known = known
        self.similarity_fn_name, self.similarity = "cosine", lambda a, b: _cosines(a, b)
        self.model_card_data = self

    def set_evaluation_metrics(self, *_: Any, **__: Any) -> None:
        """They report what they found."""

    def encode(self, texts: Any, **_: Any) -> Any:
        return torch.tensor(np.stack([self.known[text] for text in texts]))

    encode_query = encode_document = encode


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(b, dim=-1).T


def ranked_case() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Triplets in which anchors and fitting texts come again."""
    numbers = np.random.default_rng(0)
    ids = np.stack([numbers.integers(0, 20, 60), numbers.integers(20, 60, 60), numbers.integers(40, 90, 60)], 1)
    return numbers.normal(size=(90, 8)).astype(np.float32)[ids], ids


def test_ranking_metrics_are_those_of_sentence_transformers() -> None:
    evaluation = pytest.importorskip("sentence_transformers.evaluation")
    given, ids = ranked_case()
    known = {str(i): vector for i, vector in zip(ids.flatten(), given.reshape(-1, 8), strict=True)}
    right: dict[str, set[str]] = {}
    for anchor, fits, _ in ids.tolist():
        right.setdefault(str(anchor), set()).add(str(fits))
    evaluator = evaluation.InformationRetrievalEvaluator(
        {name: name for name in right}, {str(i): str(i) for i in set(ids[:, 1:].flatten().tolist())}, right,
        accuracy_at_k=[1], precision_recall_at_k=[1, 10], ndcg_at_k=[10], mrr_at_k=[1], map_at_k=[1],
        write_csv=False, score_functions={"cosine": _cosines},
    )  # fmt: skip
    theirs = evaluator.compute_metrices(KnownVectors(known))["cosine"]
    assert compute(spec(scored=False), given, ids) == pytest.approx(
        {
            "ndcg_at_10": theirs["ndcg@k"][10],
            "recall_at_1": theirs["recall@k"][1],
            "recall_at_10": theirs["recall@k"][10],
        },
        abs=2e-6,
    )


def test_score_metrics_are_those_of_scipy_on_cosines() -> None:
    from scipy.stats import pearsonr, spearmanr

    given, scores = vectors(50, 2, 3).numpy(), np.random.default_rng(1).integers(0, 6, 50).astype(np.float32)
    cosines = torch.cosine_similarity(torch.tensor(given[:, 0]).double(), torch.tensor(given[:, 1]).double()).numpy()
    expected = {"spearman": spearmanr(cosines, scores)[0], "pearson": pearsonr(cosines, scores)[0]}
    assert compute(spec(scored=True), given, scores) == pytest.approx(expected, abs=2e-6)
    assert compute(spec(scored=True), given, np.zeros(50)) == {"spearman": 0.0, "pearson": 0.0}


def test_the_mean_loss_is_that_of_batches() -> None:
    given, scores = vectors(100, 2, 5), torch.arange(100.0)
    blocks = [cosent_loss(given[a:b], scores[a:b]) * (b - a) for a, b in ((0, 64), (64, 100))]
    assert mean_loss(spec(scored=True), given.numpy(), scores.numpy()) == pytest.approx(float(sum(blocks) / 100))


def test_rows_are_pairs_triplets_or_scored_pairs(load: Load, write_rows: Write) -> None:
    rows = [{"a": "x", "b": "y", "no": "z", "label": 1}, {"a": "x", "b": "z", "no": "y", "label": 0.5}]
    scored = load(write_rows(rows), EMBEDDING, ("a", "b"))
    assert (scored.task.label_field, scored.task.metrics) == ("label", ("spearman", "pearson"))
    assert list(scored.train.targets) == [1.0, 0.5]
    triplets = load(write_rows(rows), EMBEDDING, ("a", "b", "no"))
    assert (triplets.task.label_field, list(triplets.train.targets)) == ("", [[0, 1, 2], [0, 2, 1]])
    for row in rows:
        del row["label"]
    pairs = load(write_rows(rows), EMBEDDING, ("a", "b"))
    assert (pairs.task.metrics[0], list(pairs.train.targets)) == ("ndcg_at_10", [[0, 1], [0, 2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": ("a",)}, "give two or three text fields"),
        ({"labels": ("x", "y")}, "an embedding has no labels"),
        ({"head": "linear"}, "an embedding has no head"),
        ({"pair": "cosine"}, "an embedding has no pair"),
        ({"text": ("a", "b", "no"), "label": "score"}, "triplets have no score"),
        ({"method": "head", "density": None}, "no head of its own"),
    ],
)
def test_settings_that_no_embedding_has_are_refused(
    make_config: Configure, changes: dict[str, Any], message: str
) -> None:
    fitting = {"text": ("a", "b"), "label": "label", "head": None, **changes}
    with pytest.raises(UsageError, match=message):
        make_config(EMBEDDING, **fitting)


def test_a_label_that_is_no_score_is_refused(load: Load, write_rows: Write) -> None:
    with pytest.raises(DataError, match=r"row 1: .*must be a finite number"):
        load(write_rows([{"a": "x", "b": "y", "label": "entailment"}]), EMBEDDING, ("a", "b"))
    with pytest.raises(DataError, match="has no field 'score'"):
        load(write_rows([{"a": "x", "b": "y"}]), EMBEDDING, ("a", "b"), label="score")


@pytest.mark.parametrize("texts", [("a", "b"), ("a", "b", "no")])
@pytest.mark.parametrize("scored", [True, False])
def test_a_run_ends_in_a_package_without_a_head(
    make_config: Configure, write_rows: Write, tmp_path: Path, texts: tuple[str, ...], scored: bool
) -> None:
    if scored and len(texts) > 2:
        return
    rows = [{name: row[name] for name in (*texts, *(["label"] if scored else []))} for row in PAIRS]
    source, metric = write_rows(rows), "spearman" if scored else "ndcg_at_10"
    config = make_config(
        EMBEDDING, text=texts, label="label", head=None, train=source, validation=source, test=source,
        out=str(tmp_path / "out"), batch_size=9, epochs=6, metric=metric, preload=scored,
    )  # fmt: skip
    result = train(config)
    package = read_package(tmp_path / "out")
    assert package.manifest == result.manifest and not package.head and package.delta.nnz
    assert package.manifest.task.head == HeadSpec("none", "mean", normalize=True)
    assert set(package.manifest.metrics) == {"validation", "test", "validation (backbone)", "test (backbone)"}
    assert package.manifest.training["baselines"]["test"] == {"backbone": package.manifest.metrics["test (backbone)"]}
    trained, frozen = (package.manifest.metrics[name][metric] for name in ("test", "test (backbone)"))
    assert trained > frozen
    assert load_data(config).task.text_fields == texts


def test_nothing_better_than_the_backbone_is_a_package_without_delta(
    make_config: Configure, write_rows: Write, tmp_path: Path
) -> None:
    rows = [{"a": row["a"], "b": row["a"]} for row in PAIRS]  # a text's own vector is the nearest: nothing to learn
    source = write_rows(rows)
    config = make_config(
        EMBEDDING, text=("a", "b"), label="label", head=None, train=source, validation=source, metric="ndcg_at_10",
        out=str(tmp_path / "out"), epochs=1, learning_rate=5.0,
    )  # fmt: skip
    assert train(config).manifest.delta is None
    package = read_package(tmp_path / "out")
    assert not package.head and package.manifest.metrics["validation"]["ndcg_at_10"] == 1.0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sparsehub.json", "README.md"}


def test_rules_that_look_at_single_rows_are_refused(make_config: Configure, write_rows: Write, tmp_path: Path) -> None:
    source = write_rows([{"a": row["a"], "b": row["b"]} for row in PAIRS])
    with pytest.raises(UsageError, match="an embedding's loss is that of a batch"):
        train(
            make_config(
                EMBEDDING, text=("a", "b"), label="label", head=None, train=source, validation=source,
                out=str(tmp_path / "out"), method="fisher",
            )
        )  # fmt: skip
