"""The probe: a linear head fitted on the frozen backbone's features, the baseline of a run and the head it starts from.

Formula: features as `linear_head.features` makes them, standardised by the training rows; by scikit-learn a regularised
logistic regression for labels (of several: one a label, against all other rows) and choices (on differences between the
right one and the others), ridge for a regression. The strength is the one with the smallest loss on the validation
rows, or in cross-validation over the training rows where these are few or absent. The standardisation goes into weight
and bias, so the head is exact.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.extras import require
from sparsehub.files import write_file
from sparsehub.package.linear_head import BIAS, WEIGHT, features
from sparsehub.package.task_spec import COSINE, MULTI_LABEL, MULTIPLE_CHOICE, REGRESSION, HeadSpec, TaskSpec
from sparsehub.progress import work
from sparsehub.tensorfile import load_tensors, tensor_bytes
from sparsehub.training.batches import Collator
from sparsehub.training.data import Split
from sparsehub.training.metrics import LOWER_IS_BETTER, best_metric, compute
from sparsehub.training.multi_label import with_thresholds
from sparsehub.training.temperature import CALIBRATED_KINDS, calibrated_loss

_RECORDED = ("metrics", "losses", "held_out", "modesty", "calibrated")
PROBE_FILE, SCORES_FILE = "probe.safetensors", "probe.json"
SMALL = 100  # validation rows below which they choose nothing by their scores
ROWS = 64  # of one forward pass
FOLDS = 5
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # C of the logistic regression
PENALTIES = (10_000.0, 3_000.0, 1_000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)  # alpha of the ridge
STEPS = 300  # of the solver
LEAST = 0.1  # factor of the head at the start: through one of nothing no gradient reaches the backbone

Numbers = NDArray[Any]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Probe:
    """A fitted linear head, or of an embedding the frozen backbone alone, and how good it is on a run's splits."""

    head: HeadSpec
    tensors: Mapping[str, Tensor]  # `weight` and `bias`, on the CPU
    metrics: Mapping[str, Metrics]  # by split
    losses: Mapping[str, float]  # by split
    held_out: float  # loss on rows that it was not fitted on, by which its strength was chosen
    modesty: float  # factor of weight and bias, at most 1, with which training starts; see `_modesty`
    calibrated: Mapping[str, float]  # by split, `calibrated_loss`; of kinds without one empty

    @property
    def fit(self) -> Fit:
        """Weight and bias as `scores_of` takes them."""
        return self.tensors[WEIGHT].double().numpy(), self.tensors[BIAS].double().numpy()

    @property
    def start(self) -> dict[str, Tensor]:
        """The head that training starts from: it gives the same labels, as surely as it would on rows that it has not
        seen."""
        return {name: tensor * self.modesty for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Frozen:
    """Features and targets of a split."""

    rows: Numbers  # [rows, features], of a multiple choice [rows, choices, features]
    targets: Numbers


def best_probe(
    backbone: Backbone,
    candidates: Sequence[TaskSpec],
    tokenizer: Any,
    splits: Mapping[str, Split],
    metric: str | None,
    run: Path,
) -> Probe:
    """The better probe of the same task with other heads, by its score on the validation rows; by its loss in
    cross-validation where these are few. It is kept in `run`: a resumed run reads it."""
    kept = run / PROBE_FILE
    if kept.is_file() and (run / SCORES_FILE).is_file():
        return _read(run)
    found = [fit_probe(task, frozen_features(backbone, task, tokenizer, splits)) for task in candidates]
    best = max(found, key=lambda probe: _rank(probe, candidates[0], metric, splits))
    write_file(kept, tensor_bytes(best.tensors))
    record = {"head": vars(best.head)} | {name: getattr(best, name) for name in _RECORDED}
    write_file(run / SCORES_FILE, json.dumps(record).encode())
    return best


def _read(run: Path) -> Probe:
    record = json.loads((run / SCORES_FILE).read_text())
    return Probe(
        **{"calibrated": {}, **record, "head": HeadSpec(**record["head"])}, tensors=load_tensors(run / PROBE_FILE)
    )


def _rank(probe: Probe, task: TaskSpec, metric: str | None, splits: Mapping[str, Split]) -> tuple[float, float]:
    """Larger is better."""
    if len(splits["validation"].rows if "validation" in splits else ()) < SMALL:
        return 0.0, -probe.held_out
    name = best_metric(task, metric)
    score = probe.metrics["validation"][name]
    return -score if name in LOWER_IS_BETTER else score, -probe.held_out


@torch.no_grad()
def frozen_features(
    backbone: Backbone, task: TaskSpec, tokenizer: Any, splits: Mapping[str, Split]
) -> dict[str, Frozen]:
    """One pass of the frozen backbone over the rows of every split."""
    with work("frozen features", sum(len(split.rows) for split in splits.values()), "rows") as advance:
        return {name: _frozen(backbone, Collator(task, tokenizer), split, advance) for name, split in splits.items()}


def _frozen(backbone: Backbone, collate: Collator, split: Split, tick: Callable[[int], Any]) -> Frozen:
    fields = (*collate.task.text_fields, *collate.task.choice_fields)
    order = sorted(range(len(split.rows)), key=lambda i: sum(len(split.rows[i][field]) for field in fields))
    found: list[Numbers] = [np.empty(0)] * len(order)
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        batch = collate.batch([(split.rows[i], split.targets[i]) for i in places])
        inputs = {n: t.view(-1, t.shape[-1]).to(backbone.device) for n, t in batch.items() if n != "labels"}
        states = backbone.module(**inputs).last_hidden_state
        its = features(collate.task.head, states, inputs["attention_mask"]).cpu().numpy()
        for i, row in zip(places, its.reshape(len(places), -1, its.shape[-1]), strict=True):
            found[i] = row
        tick(len(places))
    rows = np.stack(found)
    if collate.task.kind != MULTIPLE_CHOICE:
        rows = rows[:, 0]
    return Frozen(rows, np.asarray(split.targets))


def fit_probe(task: TaskSpec, frozen: Mapping[str, Frozen]) -> Probe:
    """Fit a linear head on features; `frozen` has `train`, and `validation` and `test` where there are such rows."""
    train, validation = frozen["train"], frozen.get("validation")
    strengths = PENALTIES if task.kind == REGRESSION else STRENGTHS
    few = validation is None or len(validation.targets) < SMALL
    parts = _folds(train) if few else [(train, validation)]
    losses = []
    with work("fitting the probe", len(strengths), "strengths") as advance:
        for strength in strengths:
            found = [_loss(task, _fit(task, a, strength), b) for a, b in parts if b is not None]
            losses.append(float(np.mean(found)))
            advance(1)
    place = int(np.argmin(losses))
    weight, bias = _fit(task, train, strengths[place])
    judged = {name: split for name, split in frozen.items() if name != "train"}
    scores = {name: scores_of((weight, bias), split) for name, split in judged.items()}
    if "validation" in judged:
        task = with_thresholds(task, scores["validation"], judged["validation"].targets)
    return Probe(
        task.head,
        {WEIGHT: torch.tensor(weight, dtype=torch.float32), BIAS: torch.tensor(bias, dtype=torch.float32)},
        {name: compute(task, scores[name], split.targets) for name, split in judged.items()},
        {name: _loss(task, (weight, bias), split) for name, split in judged.items()},
        losses[place],
        _modesty(task, (weight, bias), train, losses[place]),
        _calibrated(task, scores, judged),
    )


def _calibrated(task: TaskSpec, scores: Mapping[str, Numbers], judged: Mapping[str, Frozen]) -> dict[str, float]:
    if task.kind not in CALIBRATED_KINDS:
        return {}
    return {name: calibrated_loss(task, scores[name], split.targets) for name, split in judged.items()}


Fit = tuple[Numbers, Numbers]  # weight [outputs, features] and bias [outputs]


def _fit(task: TaskSpec, rows: Frozen, strength: float) -> Fit:
    """The head for features as they are, fitted on standardised ones."""
    flat = rows.rows.reshape(-1, rows.rows.shape[-1]).astype(np.float64)
    mean, spread = flat.mean(0), flat.std(0)
    spread[spread < 1e-6] = 1.0
    scaled = dataclasses.replace(rows, rows=(rows.rows - mean) / spread)
    weight, bias = _solve(task, scaled, strength)
    weight = weight / spread
    return weight, bias - weight @ mean if task.kind != MULTIPLE_CHOICE else bias


def _solve(task: TaskSpec, rows: Frozen, strength: float) -> Fit:
    linear = require("sklearn.linear_model", "train")
    if task.kind == MULTI_LABEL:
        each = [_against_the_rest(linear, rows.rows, column, strength) for column in rows.targets.T]
        return np.stack([weight for weight, _ in each]), np.array([bias for _, bias in each])
    if task.kind == REGRESSION:
        ridge = linear.Ridge(alpha=strength if task.head.pair != COSINE else 1e-3).fit(rows.rows, rows.targets)
        return ridge.coef_.reshape(1, -1), np.reshape(ridge.intercept_, 1)
    logistic = linear.LogisticRegression(C=strength, max_iter=STEPS, fit_intercept=task.kind != MULTIPLE_CHOICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the solver has stopped at its last step
        if task.kind == MULTIPLE_CHOICE:
            return logistic.fit(*_differences(rows)).coef_, np.zeros(1)
        if len(np.unique(rows.targets)) < 2:
            return np.zeros((len(task.labels), rows.rows.shape[1])), np.eye(len(task.labels))[rows.targets[0]]
        logistic.fit(rows.rows, rows.targets)
    return _of_every_label(logistic, len(task.labels), rows.rows.shape[1])


def _against_the_rest(linear: Any, rows: Numbers, targets: Numbers, strength: float) -> tuple[Numbers, float]:
    """The logistic regression of one label among several; of one that all rows have, or none, the answer alone."""
    if len(np.unique(targets)) < 2:
        return np.zeros(rows.shape[1]), float(np.log(targets.sum() + 0.5) - np.log(len(targets) - targets.sum() + 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the solver has stopped at its last step
        logistic = linear.LogisticRegression(C=strength, max_iter=STEPS).fit(rows, targets)
    return logistic.coef_[0], float(logistic.intercept_[0])


def _of_every_label(logistic: Any, labels: int, width: int) -> Fit:
    """A row for each label. Of two labels scikit-learn has the difference; one without rows is never the answer."""
    coefficients, intercepts = logistic.coef_, logistic.intercept_
    if len(logistic.classes_) == 2:
        coefficients, intercepts = np.concatenate([-coefficients, coefficients]) / 2, np.array([-1, 1]) * intercepts / 2
    weight, bias = np.zeros((labels, width)), np.full(labels, float(np.min(intercepts)) - 10.0)
    weight[logistic.classes_], bias[logistic.classes_] = coefficients, intercepts
    return weight, bias


def _differences(rows: Frozen) -> tuple[Numbers, Numbers]:
    """Right choice minus each other one, and the reverse: whose sign says which is right."""
    places = np.arange(len(rows.targets))
    right = rows.rows[places, rows.targets][:, None]
    wrong = np.ones(rows.rows.shape[:2], dtype=bool)
    wrong[places, rows.targets] = False
    found = (right - rows.rows)[wrong]
    return np.concatenate([found, -found]), np.repeat([1, 0], len(found))


def scores_of(fit: Fit, rows: Frozen) -> Numbers:
    """What a fitted head gives for rows, as the model does: [rows, outputs], or [rows, choices]."""
    weight, bias = fit
    scores: Numbers = rows.rows @ weight.T + bias
    return scores[..., 0] if rows.rows.ndim == 3 else scores


def _loss(task: TaskSpec, fit: Fit, rows: Frozen) -> float:
    scores, targets = torch.from_numpy(scores_of(fit, rows)), torch.from_numpy(rows.targets)
    if task.kind == REGRESSION:
        return float(torch.nn.functional.mse_loss(scores.view(-1), targets.double()))
    if task.kind == MULTI_LABEL:
        return float(torch.nn.functional.binary_cross_entropy_with_logits(scores, targets))
    return float(torch.nn.functional.cross_entropy(scores, targets))


def _modesty(task: TaskSpec, fit: Fit, rows: Frozen, held_out: float) -> float:
    """The factor of the head at which the rows that it was fitted on are as hard for it as others are.

    With few rows a fitted head knows its own by heart (topic: a loss of .03, and .88 on others), and has nothing left
    to teach the backbone. A factor changes no label. A regression's scores are no logits, and stay.
    """
    low, high = LEAST, 1.0
    if task.kind == REGRESSION or _loss(task, fit, rows) >= held_out:
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        harder = _loss(task, (fit[0] * middle, fit[1] * middle), rows) > held_out
        low, high = (middle, high) if harder else (low, middle)
    return high


def _folds(rows: Frozen) -> list[tuple[Frozen, Frozen]]:
    """Parts to fit on and to judge by; all rows are both where there are too few to part."""
    selection = require("sklearn.model_selection", "train")
    count = min(FOLDS, len(rows.targets) // 2)
    if count < 2:
        return [(rows, rows)]
    folds = selection.KFold(count, shuffle=True, random_state=0)
    return [(_at(rows, a), _at(rows, b)) for a, b in folds.split(rows.rows)]


def _at(rows: Frozen, places: Numbers) -> Frozen:
    return Frozen(rows.rows[places], rows.targets[places])
