"""What `benchmarks.quality` runs: tasks with their metrics, methods with their settings, the grid, the plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
DENSITY = 0.005
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """A public data set with the paper's splits. score: its metric of the test split; decides: of the dev split."""

    name: str
    kind: str
    text: tuple[str, ...]
    measure: str
    score: Callable[[Metrics], float]
    decides: str = "accuracy"
    choices: tuple[str, ...] = ()


def _pair(name: str, measure: str, score: Callable[[Metrics], float], **more: Any) -> Task:
    return Task(name, more.pop("kind", "text-classification"), ("text_a", "text_b"), measure, score, **more)


def _accuracy(metrics: Metrics) -> float:
    return metrics["accuracy"]


TASKS = {
    task.name: task
    for task in (
        Task("cola", "text-classification", ("text",), "Matthews", lambda m: m["matthews"], "matthews"),
        _pair(
            "stsb",
            "mean of Pearson and Spearman",
            lambda m: (m["pearson"] + m["spearman"]) / 2,
            kind="regression",
            decides="pearson",
        ),
        _pair("mrpc", "mean of accuracy and F1", lambda m: (m["accuracy"] + m["f1"]) / 2),
        _pair("rte", "accuracy", _accuracy),
        # CB's dev split has no neutral row, so a macro-F1 says nothing there
        _pair("cb", "mean of accuracy and macro-F1", lambda m: (m["accuracy"] + m["macro_f1"]) / 2),
        Task("copa", "multiple-choice", ("text", "question"), "accuracy", _accuracy, choices=("choice1", "choice2")),
        _pair("wsc", "accuracy", _accuracy),
        Task("trec", "text-classification", ("text",), "accuracy", _accuracy),
        Task("subj", "text-classification", ("text",), "accuracy", _accuracy),
        Task("sst2", "text-classification", ("text",), "accuracy", _accuracy),
        Task("banking77", "text-classification", ("text",), "accuracy", _accuracy),
    )
}
PAPER = ("cola", "stsb", "mrpc", "rte", "cb", "copa", "wsc")


@dataclass(frozen=True)
class Entry:
    """A line of the table. settings: for TrainConfig; whole: judge what was trained before it is cut to the budget."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False


def _sam(name: str, **settings: Any) -> Entry:
    return Entry(name, {"method": "sam", **settings})


METHODS = {
    entry.name: entry
    for entry in (
        Entry("full", {"method": "full"}, whole=True),
        _sam("sam"),
        Entry("random", {"method": "random"}),
        Entry("magnitude", {"method": "magnitude"}),
        Entry("bitfit", {"method": "bitfit", "density": None}),
        Entry("mixout", {"method": "mixout"}, whole=True),
        Entry("diff-pruning", {"method": "diff-pruning"}),
        Entry("child-pruning", {"method": "child-pruning"}),
        Entry("lora", {"method": "lora"}, whole=True),
        Entry("lora, equal bytes", {"method": "lora", "options": {"rank": 5, "alpha": 10.0}}, whole=True),
        _sam("sam, per tensor", granularity="tensor"),
        _sam("sam, per kind", granularity="kind"),
        _sam("sam, without the pooler", exclude=("pooler.*",)),
        _sam("sam, warmed head", head_steps=30),
        _sam("sam, per tensor, warmed head", granularity="tensor", head_steps=30),
        Entry("sam-released", {"method": "sam-released"}),
        Entry("sam-hessian", {"method": "sam-hessian", "calibration_batches": 4, "options": {"probes": 1}}),
        Entry("snip", {"method": "snip"}),
        Entry("snip, per tensor", {"method": "snip", "granularity": "tensor"}),
        Entry("fisher", {"method": "fisher"}),
        Entry("fisher, per tensor", {"method": "fisher", "granularity": "tensor"}),
        Entry("child-tuning", {"method": "child-tuning"}),
        Entry("lt-sft", {"method": "lt-sft"}),
        Entry("adapter", {"method": "adapter"}, whole=True),
        _sam("sam, last 2 layers", layers="last:2"),
        _sam("sam, per row", granularity="row"),
        Entry("magnitude, per row", {"method": "magnitude", "granularity": "row"}),
        Entry("lift", {"method": "lift"}),
        Entry("spiel", {"method": "spiel"}),
        Entry("head alone", {"method": "sam", "density": 0.0}),
    )
}


# What the paper compares. A task counts in the averages once all of them were run on it: a column that only some have
# would tell apart tasks, not methods.
COMPARED = ("full", "sam", "random", "magnitude", "bitfit", "mixout", "diff-pruning", "child-pruning", "lora")


@dataclass(frozen=True)
class Plan:
    """How much of everything, the same for every method.

    grid: learning rates of what is trained beside the head, tried on the first seed; the best on the dev split is kept
    for the other seeds. epochs, rows, max_length: by task; rows: of the training split, the first ones of a seeded
    shuffle, 0 for all; calibration_batches: at most, for the rules that look at rows.
    """

    name: str
    grid: tuple[float, ...]
    tasks: tuple[str, ...]
    epochs: Mapping[str, float]
    rows: Mapping[str, int]
    max_length: Mapping[str, int]
    calibration_batches: int
    precision: str
    batch_size: int = 16
    head_learning_rate: float = 1e-3
    warmup: float = 0.1


PLANS = {
    "cpu": Plan(
        "cpu",
        grid=(1e-4, 5e-4, 2.5e-3, 1e-2),
        tasks=("trec", "cb", "copa", "wsc", "rte"),
        epochs={"trec": 2, "cb": 6, "copa": 5, "wsc": 3, "rte": 2},
        rows={"trec": 1000, "rte": 1000},
        max_length={"trec": 32, "cb": 80, "copa": 32, "wsc": 64, "rte": 80},
        calibration_batches=32,
        precision="bfloat16",
    ),
    # what two busy cores can do in an afternoon: three rates instead of four, for every method
    "short": Plan(
        "short",
        grid=(2e-4, 2e-3, 1e-2),
        tasks=("cb", "copa", "wsc", "rte"),
        epochs={"cb": 6, "copa": 5, "wsc": 3, "rte": 2},
        rows={"rte": 1000},
        max_length={"cb": 80, "copa": 32, "wsc": 64, "rte": 80},
        calibration_batches=32,
        precision="bfloat16",
    ),
    "gpu": Plan(
        "gpu",
        grid=(1e-4, 5e-4, 2.5e-3, 1e-2),
        tasks=PAPER,
        epochs={"cola": 4, "stsb": 5, "mrpc": 6, "rte": 8, "cb": 20, "copa": 15, "wsc": 12}
        | {"trec": 5, "subj": 3, "sst2": 3},
        rows={},
        max_length=dict.fromkeys(TASKS, 128),
        calibration_batches=64,
        precision="bfloat16",
    ),
}
