"""Everything that `sparsehub train` can be told, in one frozen dataclass; flags and YAML files both end here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparsehub.delta import value_dtypes
from sparsehub.errors import UsageError
from sparsehub.package.manifest import KINDS, MULTIPLE_CHOICE, TEXT_GENERATION, check_name, check_version
from sparsehub.schema import build, unknown_name
from sparsehub.selection.registry import GRANULARITIES
from sparsehub.training.method import Method, method_named

PRECISIONS = ("float32", "bfloat16", "float16")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")
# What a run does where neither the user nor its method says otherwise.
DEFAULTS: Mapping[str, Any] = {
    "density": 0.005,
    "granularity": "global",
    "calibration_batches": 64,
    "learning_rate": 2e-3,
}
_INF = float("inf")
_RANGES = {
    "density": (0, 1),
    "nnz": (1, _INF),
    "head_steps": (0, _INF),
    "calibration_batches": (1, _INF),
    "batch_size": (1, _INF),
    "accumulation": (1, _INF),
    "head_learning_rate": (0, _INF),
    "weight_decay": (0, _INF),
    "warmup": (0, 1),
    "clip": (0, _INF),
    "max_length": (1, 1 << 20),
    "patience": (0, _INF),
    "evaluation_steps": (0, _INF),
    "seed": (0, (1 << 32) - 1),
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    train, validation, test: a .jsonl, .json, .csv, .tsv or .parquet file, or `data-set[:configuration]:split` of the
    Hugging Face Hub; text: one or two fields; choices: the fields of a multiple choice; labels: their names in order,
    where the data has numbers or another order is wanted; density: share of the backbone's entries that may change, or
    nnz: their number; include, exclude: shell patterns over parameter names that say which may change at all;
    calibration_batches: how many batches a selection rule looks at; head_steps: steps in which the head trains alone
    before that; options: the method's own settings; precision: of the forward pass, by autocast; compile: a backend of
    torch.compile; preload: tokenise all rows once and keep them on the device; patience: evaluations without a better
    metric before training stops, 0 for never; evaluation_steps: evaluate and save every so many steps, 0 for every
    epoch; packing: training texts of a text generation one after another in full rows.

    For a text generation, text is a field of texts, of prompts or of conversations, and label the prompts' completions;
    where the rows have no such field, whole texts are learned.

    Where density, granularity, calibration_batches or learning_rate are None, the method decides: see `resolved`.
    """

    backbone: str
    kind: str
    name: str
    train: str
    text: tuple[str, ...]
    out: str
    label: str = "label"
    validation: str | None = None
    test: str | None = None
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    revision: str | None = None
    version: str = "0.1.0"
    license: str = ""
    method: str = "sam"
    density: float | None = None
    nnz: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    granularity: str | None = None
    calibration_batches: int | None = None
    head_steps: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    value_dtype: str = "float16"
    epochs: float = 5.0
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float | None = None
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "linear"
    warmup: float = 0.1
    clip: float = 1.0
    max_length: int = 256
    metric: str | None = None
    patience: int = 0
    evaluation_steps: int = 0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    compile: str | None = None
    preload: bool = False
    packing: bool = False
    device: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        check_name(self.name)
        check_version(self.version)
        method = method_named(self.method)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("kind", self.kind, KINDS)
        _one_of("value dtype", self.value_dtype, tuple(value_dtypes))
        _one_of("precision", self.precision, PRECISIONS)
        if not 1 <= len(self.text) <= 2:
            raise UsageError("give one or two text fields", found=", ".join(self.text) or "none")
        if (self.kind == MULTIPLE_CHOICE) != bool(self.choices):
            raise UsageError(
                f"choices belong to {MULTIPLE_CHOICE}, and it needs them", fix="for example --choices choice1,choice2"
            )
        self._check_generation()
        if self.granularity is not None:
            _one_of("granularity", self.granularity, GRANULARITIES)
        if self.density is not None and self.nnz is not None:
            raise UsageError("density and nnz are two ways to say the same", fix="give one of them")
        _options(method, self.options)
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} is out of range", found=value, expected=f"{least:g} to {most:g}")
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} must be above zero", found=value)
        for name in ("patience", "metric"):
            if getattr(self, name) and self.validation is None:
                raise UsageError(f"{name} needs a validation split", fix="give --validation")

    def _check_generation(self) -> None:
        generates = self.kind == TEXT_GENERATION
        if generates and (len(self.text) > 1 or self.labels):
            raise UsageError("a text generation has one text field and no labels", fix="leave --labels out")
        if self.packing and not generates:
            raise UsageError(f"packing belongs to {TEXT_GENERATION}", found=self.kind, fix="leave it out")

    def resolved(self) -> TrainConfig:
        """The same run with everything that was left open filled in by its method; raises `UsageError`."""
        method = method_named(self.method)
        standard = {**DEFAULTS, **method.defaults}
        if self.nnz is not None:
            del standard["density"]
        open_settings = {name: value for name, value in standard.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **open_settings, options=_options(method, self.options))


def _options(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method; those that were given in the type of their standard value."""
    options = dict(method.options)
    for name, value in given.items():
        _one_of(f"option of {method.name}", name, tuple(method.options))
        kind = type(options[name])
        try:
            options[name] = value if isinstance(value, kind) else kind(value)
        except (TypeError, ValueError):
            raise UsageError(
                f"the option {name} of {method.name} has the wrong type", found=repr(value)[:80], expected=kind.__name__
            ) from None
    return options


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(unknown_name(what, value, list(known)))


def load_config(path: Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """A configuration from a YAML file and flags; a flag wins. Raises `UsageError`."""
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"{path} cannot be read as YAML", found=str(error)) from error
        if not isinstance(table, dict):
            raise UsageError(f"{path} must hold one mapping", found=type(table).__name__)
    merged = {**table, **{name: value for name, value in flags.items() if value is not None}}
    for name in ("text", "choices", "labels", "include", "exclude"):
        if isinstance(merged.get(name), str):
            merged[name] = [part.strip() for part in merged[name].split(",") if part.strip()]
    for name in _NUMBERS & merged.keys():
        merged[name] = _number(merged[name])
    return build(TrainConfig, merged, str(path) if path else "train", UsageError)


_NUMBERS = {f.name for f in dataclasses.fields(TrainConfig) if str(f.type).startswith("float")}


def _number(value: Any) -> Any:
    """YAML takes 1e-3 for a text, because it has no dot."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
