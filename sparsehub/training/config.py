"""The settings of a training run, each defined once.

Flags, YAML files and Python make the same frozen value of them, and the command line's help is made of the definitions:
nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from sparsehub.delta_format import STORED_DTYPES
from sparsehub.package.manifest import check_name, check_version
from sparsehub.package.task_spec import KINDS, LINEAR, LINEAR_KINDS, PAIRS, POOLINGS, TRANSFORMERS
from sparsehub.selection.depth import ALL
from sparsehub.selection.registry import GRANULARITIES
from sparsehub.settings import FROZEN, Configuration, Fallback, Flag, Names, OneOf, PathText, settings_of
from sparsehub.training.config_checks import check_settings
from sparsehub.training.method import ByMethod, method_named, method_names, options_of
from sparsehub.training.sources import Source
from sparsehub.training.tables.folder import whole_folder
from sparsehub.training.tables.layout_settings import DATA, Delimiter, Encoding, Quoting

CHANGES, LOOP = "What may change", "Training"  # boxes of the command line's help
PRECISIONS = ("float32", "bfloat16", "float16")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")
TENSORBOARD, WANDB, MLFLOW = "tensorboard", "wandb", "mlflow"
TRACKERS = (TENSORBOARD, WANDB, MLFLOW)  # by the names of their packages


@dataclass(frozen=True, config=FROZEN)
class TrainConfig(Configuration):
    """Everything that can be set for one training run. Raises `UsageError` for what makes no sense.

    Rows come from a file, a data set of the Hugging Face Hub, a list of dicts, a `datasets.Dataset` or a pandas frame.
    For a text generation, `text` is a field of texts, of prompts or of conversations, and `label` the prompts'
    completions; where the rows have no such field, whole texts are learned.

    Where density, granularity, calibration_batches or learning_rate are None, the method decides: see `resolved`.
    """

    backbone: Annotated[
        PathText, Field(description="The pretrained model: a folder, or an id of the Hugging Face Hub.")
    ]
    kind: Annotated[str, OneOf(KINDS), Field(description="What the task does.")]
    name: Annotated[str, Field(description="The task's name: a-z 0-9 . _ -")]
    train: Annotated[
        Source,
        Flag(panel=DATA, metavar="SOURCE"),
        Field(
            description="Training rows: a .jsonl .json .csv .tsv .parquet .txt file, a folder, data-set[:config]:split."
        ),
    ]
    text: Annotated[
        Names,
        Flag(panel=DATA, metavar="FIELD[,FIELD]"),
        Field(description="The field of the text, or two for pairs: text_a,text_b; three for an embedding's triplets."),
    ]
    out: Annotated[PathText, Field(description="The package folder to write; it must not exist.")]
    label: Annotated[
        str,
        Flag(panel=DATA, metavar="FIELD"),
        Field(
            description="The field of the label, or a field for each of several: one,two; of the completion, "
            "where text is generated."
        ),
    ] = "label"
    validation: Annotated[
        Source | None, Flag(panel=DATA, metavar="SOURCE"), Field(description="Rows that choose the best epoch.")
    ] = None
    test: Annotated[
        Source | None, Flag(panel=DATA, metavar="SOURCE"), Field(description="Rows that are measured once, at the end.")
    ] = None
    choices: Annotated[
        Names,
        Flag(panel=DATA, metavar="FIELD,FIELD,..."),
        Field(description="Multiple choice: the fields of the choices, choice1,choice2."),
    ] = ()
    labels: Annotated[
        Names,
        Flag(panel=DATA, metavar="NAME,NAME,..."),
        Fallback("found in the training rows"),
        Field(description="The labels' names in order: no,yes."),
    ] = ()
    quoting: Quoting = None
    delimiter: Delimiter = None
    encoding: Encoding = None
    revision: Annotated[str | None, Field(description="The backbone's revision on the Hugging Face Hub.")] = None
    version: Annotated[str, Field(description="The package's version.")] = "0.1.0"
    license: Annotated[str, Field(description="The package's licence, for its card: apache-2.0.")] = ""
    method: Annotated[
        str,
        OneOf(tuple(method_names())),
        Flag(panel=CHANGES),
        Field(description="How entries are chosen and trained (docs/methods.md)."),
    ] = "sam"
    density: Annotated[
        float | None,
        ByMethod(0.005),
        Flag(panel=CHANGES),
        Field(ge=0, le=1, description="Share of the backbone's entries that may change."),
    ] = None
    nnz: Annotated[
        int | None,
        Flag(panel=CHANGES),
        Field(ge=1, description="How many entries may change, in place of a density."),
    ] = None
    include: Annotated[
        Names,
        Flag(panel=CHANGES, metavar="PATTERN,..."),
        Fallback("all"),
        Field(description="Parameters that may change, by shell patterns: 'encoder.*'."),
    ] = ()
    exclude: Annotated[
        Names,
        Flag(panel=CHANGES, metavar="PATTERN,..."),
        Field(description="Parameters that may not change: '*.bias,pooler.*'."),
    ] = ()
    layers: Annotated[
        str,
        Flag(panel=CHANGES, metavar="last:K|first:K|N-M|all|auto[:MARGIN]"),
        Field(description="Layers that may change: last:2, first:2, 3-5 (from 0), all; auto: as few as do as well."),
    ] = ALL
    granularity: Annotated[
        str | None,
        OneOf(GRANULARITIES),
        ByMethod("global"),
        Flag(panel=CHANGES),
        Field(description="Where entries compete: all together, by kind of matrix, by tensor, or by output row."),
    ] = None
    calibration_batches: Annotated[
        int | None,
        ByMethod(64),
        Flag(panel=CHANGES),
        Field(ge=1, description="Batches that a selection rule looks at."),
    ] = None
    head_steps: Annotated[
        int,
        Flag(panel=CHANGES),
        Field(ge=0, description="Steps of the head alone, before entries are chosen."),
    ] = 0
    options: Annotated[
        dict[str, Any],
        Flag(name="option", panel=CHANGES, metavar="NAME=VALUE", repeated=True),
        Field(description="A setting of the method's own: probability=0.9 (docs/methods.md)."),
    ] = field(default_factory=dict)
    head: Annotated[
        str | None,
        OneOf((LINEAR, TRANSFORMERS)),
        Flag(panel=CHANGES),
        Fallback("linear for whole texts and choices, else that of transformers"),
        Field(description="What makes scores of the backbone's states: a linear layer, or transformers' own class."),
    ] = None
    pooling: Annotated[
        str | None,
        OneOf(POOLINGS),
        Flag(panel=CHANGES),
        Fallback("as the checkpoint says, else the mean; of decoders the last"),
        Field(description="Linear head: which states of a text make its vector."),
    ] = None
    normalize: Annotated[
        bool, Flag(panel=CHANGES), Field(description="Linear head: scale the vectors to unit length.")
    ] = False
    pair: Annotated[
        str | None,
        OneOf(PAIRS),
        Flag(panel=CHANGES),
        Fallback("the better probe on validation"),
        Field(description="Linear head: both texts of a pair in one sequence, each alone, or by their cosine."),
    ] = None
    value_dtype: Annotated[
        str, OneOf(tuple(STORED_DTYPES)), Flag(panel=CHANGES), Field(description="How changed values are stored.")
    ] = "float16"
    epochs: Annotated[
        float | None,
        Flag(panel=LOOP),
        Fallback("5; from a probe up to 20, where 5 make fewer than 60 steps"),
        Field(gt=0, description="Passes over the training rows."),
    ] = None
    batch_size: Annotated[int, Flag(panel=LOOP), Field(ge=1, description="Rows of a batch, on each process.")] = 16
    accumulation: Annotated[int, Flag(panel=LOOP), Field(ge=1, description="Batches of an optimiser step.")] = 1
    learning_rate: Annotated[
        float | None,
        ByMethod(2e-3),
        Flag(panel=LOOP),
        Field(gt=0, description="Learning rate of the changed values."),
    ] = None
    head_learning_rate: Annotated[float, Flag(panel=LOOP), Field(ge=0, description="Learning rate of the head.")] = 1e-3
    weight_decay: Annotated[
        float, Flag(panel=LOOP), Field(ge=0, description="Decay of the changed values, towards the backbone's.")
    ] = 0.0
    schedule: Annotated[
        str, OneOf(SCHEDULES), Flag(panel=LOOP), Field(description="How the learning rate falls after the warm-up.")
    ] = "linear"
    warmup: Annotated[
        float, Flag(panel=LOOP), Field(ge=0, le=1, description="Share of the steps in which the learning rate rises.")
    ] = 0.1
    clip: Annotated[float, Flag(panel=LOOP), Field(ge=0, description="Largest norm of a gradient; 0 for no limit.")] = (
        1.0
    )
    max_length: Annotated[int, Flag(panel=DATA), Field(ge=1, le=1 << 20, description="Tokens of one row, at most.")] = (
        256
    )
    metric: Annotated[
        str | None,
        Flag(panel=LOOP),
        Fallback("the first of the task's kind"),
        Field(description="The metric that chooses the best epoch."),
    ] = None
    patience: Annotated[
        int,
        Flag(panel=LOOP),
        Field(ge=0, description="Stop after so many evaluations without a better one; 0 for never."),
    ] = 0
    evaluation_steps: Annotated[
        int, Flag(panel=LOOP), Field(ge=0, description="Evaluate and save every so many steps; 0 for every epoch.")
    ] = 0
    report_to: Annotated[
        str | None,
        OneOf(TRACKERS),
        Flag(panel=LOOP),
        Field(description="Where losses and scores go while a run goes on (docs/training.md)."),
    ] = None
    logging_steps: Annotated[
        int,
        Flag(panel=LOOP),
        Field(ge=0, description="Report loss and learning rate every so many steps; 0 for every epoch."),
    ] = 0
    precision: Annotated[
        str, OneOf(PRECISIONS), Flag(panel=LOOP), Field(description="Precision of the forward pass, by autocast.")
    ] = "float32"
    gradient_checkpointing: Annotated[
        bool, Flag(panel=LOOP), Field(description="Compute activations twice: less memory, more time.")
    ] = False
    compile: Annotated[
        str | None, Flag(panel=LOOP, metavar="BACKEND"), Field(description="A backend of torch.compile: inductor.")
    ] = None
    preload: Annotated[
        bool, Flag(panel=LOOP), Field(description="Tokenise all rows once and keep them on the device.")
    ] = False
    packing: Annotated[
        bool, Flag(panel=DATA), Field(description="Text generation: several training texts in one row of tokens.")
    ] = False
    examples: Annotated[
        int,
        Flag(panel=DATA),
        Field(ge=0, le=20, description="Right and wrong test rows to show on the card, so many of each."),
    ] = 0
    device: Annotated[
        str | None,
        Flag(panel=LOOP),
        Fallback("cuda where there is one, else cpu"),
        Field(description="Where to train: cpu, cuda or cuda:1."),
    ] = None
    seed: Annotated[
        int, Flag(panel=LOOP), Field(ge=0, le=(1 << 32) - 1, description="Seed of everything that is random.")
    ] = 42

    def __post_init__(self) -> None:
        check_name(self.name)
        check_version(self.version)
        self._open_folder()
        options_of(method_named(self.method), self.options)
        check_settings(self)

    def _open_folder(self) -> None:
        """Training rows that are a folder are the splits in it, where none is given for itself."""
        if not isinstance(self.train, str) or not self.train or not Path(self.train).is_dir():
            return
        for split, source in whole_folder(Path(self.train)).items():
            if split == "train" or getattr(self, split) is None:
                object.__setattr__(self, split, source)  # the value is frozen once it is made

    @property
    def has_linear_head(self) -> bool:
        """Whether the head is one linear layer on pooled states."""
        return self.kind in LINEAR_KINDS and self.head != TRANSFORMERS

    def resolved(self) -> TrainConfig:
        """The same run with everything that was left open filled in by its method; raises `UsageError`."""
        method = method_named(self.method)
        standard = {**DEFAULTS, **method.defaults}
        if self.nnz is not None:
            del standard["density"]
        open_settings = {name: value for name, value in standard.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **open_settings, options=options_of(method, self.options))


DEFAULTS: Mapping[str, Any] = {
    setting.name: setting.fallback.value
    for setting in settings_of(TrainConfig)
    if isinstance(setting.fallback, ByMethod)
}
