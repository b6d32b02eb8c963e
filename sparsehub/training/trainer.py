"""transformers' Trainer, set up for a sparse model: loop, bar, evaluation, best checkpoint, stopping, resuming."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.extras import require
from sparsehub.package.task_spec import TEXT_GENERATION, TaskSpec
from sparsehub.progress import Quiet, current_display
from sparsehub.selection.depth import ALL
from sparsehub.training.activation_checkpointing import checkpoint_activations
from sparsehub.training.batches import by_length
from sparsehub.training.data import Split
from sparsehub.training.evaluation import Outputs
from sparsehub.training.job import Job
from sparsehub.training.language_modeling import row_scores
from sparsehub.training.metrics import LOWER_IS_BETTER, best_metric, compute, mean_loss
from sparsehub.training.multi_label import with_thresholds
from sparsehub.training.probe import SMALL, Probe
from sparsehub.training.temperature import calibrated_loss
from sparsehub.training.trainable import Trainable

EVALUATION_ROWS = 64  # rows of one evaluation batch
SILENCE = 60.0  # seconds after which a log file hears that training goes on
CHOICE = "choice"  # what an evaluation calls the number of which the largest is the best epoch
NOISE = (f"eval_{CHOICE}", "eval_model_preparation_time")  # of an evaluation, what tells nobody anything
SPEED = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
SCORE_STEP = 1e-6  # scores have six decimals


def make_trainer(job: Job, model: Trainable, epochs: float, run: Path, *, judged: bool = True) -> Any:
    """A Trainer whose checkpoints go to `run`. judged: whether the validation split chooses the best epoch."""
    require("accelerate", "train")
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    config, data = job.config, job.data
    if config.gradient_checkpointing and not checkpoint_activations(model.task):
        raise UsageError(f"{type(model.task).__name__} cannot compute its activations again", fix="leave it out")
    assert config.learning_rate is not None  # a job's settings are resolved
    optimizer = model.optimizer(
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        weight_decay=config.weight_decay,
    )
    validation = data.validation if judged else None
    trainer: Any = _trainer_class()(
        model=model,
        args=_arguments(job, epochs, run, judged=validation is not None),
        data_collator=job.collator,
        train_dataset=job.rows(data.train),
        eval_dataset=job.rows(by_length(validation, data.task)) if validation else None,
        optimizers=(optimizer, None),
        callbacks=[EarlyStoppingCallback(config.patience, SCORE_STEP / 2)] if config.patience and validation else [],
        preprocess_logits_for_metrics=_scores if data.task.kind == TEXT_GENERATION else None,
        compute_metrics=lambda prediction: _evaluated(job, trainer, prediction),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_progress())
    return trainer


def _trainer_class() -> Any:
    from transformers import Trainer

    class SparseTrainer(Trainer):
        def training_step(self, model: Any, *inputs: Any, **more: Any) -> Any:
            loss = super().training_step(model, *inputs, **more)
            if self.accelerator.sync_gradients:  # the last batch of a step: all its gradients have been added up
                self.accelerator.unwrap_model(model, keep_torch_compile=False).average_gradients()
            return loss

    return SparseTrainer


def _arguments(job: Job, epochs: float, run: Path, *, judged: bool) -> Any:
    from transformers import TrainingArguments

    config, data = job.config, job.data
    when = "no" if not judged else "steps" if config.evaluation_steps else "epoch"
    cuda = job.task_model.backbone.device.type == "cuda"
    return TrainingArguments(
        output_dir=str(run),
        num_train_epochs=epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size if data.task.kind == TEXT_GENERATION else EVALUATION_ROWS,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=math.ceil(steps_of(job, epochs) * config.warmup),
        max_grad_norm=config.clip,
        bf16=config.precision == "bfloat16",
        fp16=config.precision == "float16",
        torch_compile=config.compile is not None,
        torch_compile_backend=config.compile,
        use_cpu=not cuda,
        ddp_backend="gloo" if job.processes.count > 1 and not cuda else None,
        dataloader_pin_memory=cuda and not config.preload,
        seed=config.seed,
        eval_strategy=when,
        save_strategy="steps" if config.evaluation_steps else "epoch",
        eval_steps=config.evaluation_steps or None,
        save_steps=config.evaluation_steps or 500,
        run_name="-".join([config.name, config.version, *([] if config.layers == ALL else [config.layers])]),
        logging_strategy="steps" if config.logging_steps else "epoch",
        logging_steps=config.logging_steps or 500,
        load_best_model_at_end=judged,
        metric_for_best_model=CHOICE,
        greater_is_better=True,
        save_total_limit=2,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",  # `tracking` does it
        restore_callback_states_from_checkpoint=True,  # how long patience has lasted
    )


def steps_of(job: Job, epochs: float) -> int:
    """Steps of the optimiser in so many epochs."""
    return math.ceil(job.steps_an_epoch * epochs)


def by_scores(job: Job) -> bool:
    """Whether validation scores choose the epoch. On few rows that is luck: the last epoch is kept, unless the user has
    asked for a metric or for patience."""
    config, validation = job.config, job.data.validation
    return bool(config.metric or config.patience) or (validation is not None and len(validation.rows) >= SMALL)


def _evaluated(job: Job, trainer: Any, prediction: Any) -> dict[str, float]:
    """The metrics of an evaluation, and the number of which the largest is the best epoch."""
    logits, labels = _logits(prediction.predictions), prediction.label_ids
    task = with_thresholds(job.data.task, logits, labels)
    metrics = compute(task, logits, labels)
    if not by_scores(job):
        return {**metrics, CHOICE: float(trainer.state.global_step)}
    return {**metrics, CHOICE: choice(job, metrics, mean_loss(job.data.task, logits, labels))}


def choice(job: Job, metrics: Mapping[str, float], loss: float) -> float:
    """Larger for a better score; for equal ones larger for a smaller loss, by less than a score's last decimal."""
    name = best_metric(job.data.task, job.config.metric)
    score = -metrics[name] if name in LOWER_IS_BETTER else metrics[name]
    return score - 0.4 * SCORE_STEP * (loss / (1 + loss) if math.isfinite(loss) else 1.0)


def improved(job: Job, trainer: Any) -> bool:
    """Whether training has made anything better than the probe that it started from, as far as validation can say.

    By the best epoch's score, ties by loss, where its loss is smaller too, both at the temperatures that suit them: of
    many epochs one has a better score by luck. On few rows unless the score is no better and the loss is worse.
    """
    validation = job.data.validation
    if job.probe is None or validation is None:
        return True
    start = choice(job, job.probe.metrics["validation"], job.probe.losses["validation"])
    if by_scores(job):
        best = trainer.state.best_metric
        return best is None or (float(best) > start and _fits_better(job, job.probe, trainer, validation))
    found = evaluate(trainer, job, {"validation": validation})
    metrics, loss = found.metrics["validation"], found.losses["validation"]
    return choice(job, metrics, 0.0) > choice(job, job.probe.metrics["validation"], 0.0) or (
        loss < job.probe.losses["validation"]
    )


def _fits_better(job: Job, probe: Probe, trainer: Any, validation: Split) -> bool:
    """Whether the model as it is explains the validation rows better than the probe; says so where it does not."""
    start = probe.calibrated.get("validation")
    if start is None:
        return True
    found = evaluate(trainer, job, {"validation": validation}).outputs["validation"]
    loss = calibrated_loss(job.data.task, found.logits, found.targets)
    if not loss < start:
        job.report(f"a better score by luck: the best epoch's calibrated loss is {loss:.4f}, the probe's {start:.4f}")
    return loss < start


def _scores(logits: Any, labels: Tensor) -> Tensor:
    """What is kept of a language model's logits: whole, those of a few rows would fill the memory."""
    return row_scores(_logits(logits), labels)


def _logits(predictions: Any) -> Any:
    return predictions[0] if isinstance(predictions, tuple) else predictions


@dataclass(frozen=True)
class Judgement:
    """What a model says of the rows of some splits, as its weights were."""

    task: TaskSpec  # with the thresholds that its answers on the validation rows choose, where labels have some
    metrics: Mapping[str, dict[str, float]]  # by split
    losses: Mapping[str, float]  # by split
    outputs: Mapping[str, Outputs]  # by split


def evaluate(trainer: Any, job: Job, splits: Mapping[str, Split]) -> Judgement:
    """Judge the model as its weights are now, `validation` first: it decides the thresholds of every other split."""
    task, metrics, losses, outputs = job.data.task, {}, {}, {}
    for name, split in splits.items():
        ordered = by_length(split, job.data.task)
        output = trainer.predict(job.rows(ordered))
        outputs[name] = Outputs(ordered, _logits(output.predictions), output.label_ids)
        logits, labels = outputs[name].logits, outputs[name].targets
        if name == "validation":
            task = with_thresholds(task, logits, labels)
        metrics[name], losses[name] = compute(task, logits, labels), float(output.metrics["test_loss"])
    return Judgement(task, metrics, losses, outputs)


def _progress() -> Any:
    """A readable line an evaluation, on standard error; on a terminal a bar for training and one for each evaluation,
    elsewhere a line now and then of how far it is."""
    from transformers.trainer_callback import ProgressCallback, TrainerCallback

    class Bars(ProgressCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
            line = _readable(logs or {})
            if state.is_world_process_zero and line:
                bar = self.training_bar
                (bar.write(line, file=sys.stderr) if bar is not None else print(line, file=sys.stderr))  # noqa: T201

    class LogLines(TrainerCallback):
        said = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
            self._say(state, _readable(logs or {}))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if time.monotonic() - self.said > SILENCE:
                self._say(state, f"step {state.global_step:,} of {state.max_steps:,}")

        def _say(self, state: Any, line: str) -> None:
            if state.is_world_process_zero and line:
                self.said = time.monotonic()
                print(line, file=sys.stderr)  # noqa: T201

    watched = sys.stderr.isatty() and not isinstance(current_display(), Quiet)
    return Bars() if watched else LogLines()


def _readable(logs: dict[str, Any]) -> str:
    parts = [f"epoch {logs['epoch']:.2f}"] if "epoch" in logs else []
    if "loss" in logs:
        return "  ".join([*parts, f"training loss {float(logs['loss']):.4f}"])
    noise = (*NOISE, *SPEED)
    scores = [f"{k.removeprefix('eval_')} {v:.4f}" for k, v in logs.items() if k.startswith("eval_") and k not in noise]
    return "  ".join([*parts, "validation:", *scores]) if scores else ""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers' and datasets' own chatter out of a user's terminal while a run goes on."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    datasets = sys.modules.get("datasets")  # files of rows are read without it
    if datasets is not None:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if datasets is not None:
            datasets.enable_progress_bars()
