"""A package as an ordinary model of transformers or sentence-transformers, for code that knows nothing of sparsehub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsehub.errors import UsageError
from sparsehub.extras import require
from sparsehub.files import TEMPORARY_PREFIX
from sparsehub.package.task_spec import (
    EMBEDDING,
    LINEAR,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    REGRESSION,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
)
from sparsehub.schema import unknown_name

if TYPE_CHECKING:
    from sparsehub.backbone import Checkpoint
    from sparsehub.hub import PackageHub
    from sparsehub.package import Package, TaskSpec
    from sparsehub.package.policy import Policy
    from sparsehub.package.task_model import TaskModel

TRANSFORMERS, SENTENCE_TRANSFORMERS = "transformers", "sentence-transformers"
LIBRARIES = [TRANSFORMERS, SENTENCE_TRANSFORMERS]
_PIPELINES = {
    TEXT_CLASSIFICATION: "text-classification",
    MULTI_LABEL: "text-classification",
    REGRESSION: "text-classification",
    TOKEN_CLASSIFICATION: "token-classification",
    TEXT_GENERATION: "text-generation",
}

# What text classification of transformers is told, by kind: of several labels it gives every one, with its probability.
_ANSWERS: dict[str, dict[str, Any]] = {
    TEXT_CLASSIFICATION: {},
    MULTI_LABEL: {"function_to_apply": "sigmoid", "top_k": None},
    REGRESSION: {"function_to_apply": "none"},
}


def load(
    reference: str | Path,
    *,
    hub: str | Path | PackageHub | None = None,
    backbone: str | Path | None = None,
    revision: str | None = None,
    library: str = TRANSFORMERS,
    dtype: str | None = None,
    policy: Policy | None = None,
) -> Any:
    """A package's whole model, in memory, on the CPU and in evaluation mode.

    reference: a package folder, or a task in `hub` (`topic`, `topic@1.0.0`, `topic@sha256:...`). hub: a location such
    as `./hub` or `s3://bucket`, or an open hub. backbone: a folder or a hub id; by default the package's own.
    library: `transformers` for its `AutoModelFor...` class with the task's head (for a linear head a model that is
    called alike, of an embedding its `AutoModel`), or `sentence-transformers` for a `SentenceTransformer` of the task's
    backbone without the head, whose `encode` gives what `/v1/embeddings` gives.
    dtype: of the weights; by default float32, or the package's own where its values replace weights of that dtype.
    policy: whose packages may be used; the user's own settings by default.

    Raises `UsageError`, `NotFoundError`, `FormatError`, `TrustError` and `BackboneMismatchError`.
    """
    if library not in LIBRARIES:
        raise UsageError(unknown_name("library", library, LIBRARIES))
    package, checkpoint = _found(reference, hub, backbone, revision, policy)
    task_model = _task_model(package, checkpoint, dtype)
    if library == TRANSFORMERS:
        whole = task_model.backbone.module if package.manifest.task.kind == EMBEDDING else task_model.model
        return whole.eval()
    return _sentence_transformer(package, task_model, checkpoint)


def pipeline(
    reference: str | Path,
    *,
    hub: str | Path | PackageHub | None = None,
    backbone: str | Path | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    policy: Policy | None = None,
) -> Any:
    """A transformers pipeline on a package: a text in, a label (or a text) out. Arguments and errors as for `load`.

    Longer texts than the task was trained on are cut, as pipelines do. A regression's score is its number. A multiple
    choice and an embedding have no pipeline in transformers: `UsageError`.
    """
    from transformers import pipeline as transformers_pipeline

    from sparsehub.backbone.tokenizer import load_tokenizer

    package, checkpoint = _found(reference, hub, backbone, revision, policy)
    task = package.manifest.task
    if task.kind not in _PIPELINES:
        route = "embeddings" if task.kind == EMBEDDING else "classify"
        fix = f"load the model with sparsehub.load, or serve it and post to /v1/{route}"
        raise UsageError("transformers has no pipeline for this kind of task", found=task.kind, fix=fix)
    tokenizer = load_tokenizer(checkpoint)
    options: dict[str, Any] = {}
    if task.kind != TEXT_GENERATION:
        tokenizer.model_max_length = task.max_length
    if task.kind in _ANSWERS:
        options = {"truncation": True, **_ANSWERS[task.kind]}
    model = _task_model(package, checkpoint, dtype).model.eval()
    if task.head.type == LINEAR:
        options["pipeline_class"] = _linear_pipeline(task)
    return transformers_pipeline(_PIPELINES[task.kind], model=model, tokenizer=tokenizer, device="cpu", **options)


def _linear_pipeline(task: TaskSpec) -> Any:
    """transformers' text classification with a linear head, whose model it does not know by name."""
    from transformers import TextClassificationPipeline

    from sparsehub.package.encoding import collate, encode

    class LinearHeadPipeline(TextClassificationPipeline):
        def check_model_type(self, supported_models: Any) -> None:
            """It would print the names of all classes that transformers knows."""

        def preprocess(self, inputs: Any, **tokenizer: Any) -> Any:
            if not task.reads_alone:
                return super().preprocess(inputs, **tokenizer)
            texts = (inputs["text"], inputs["text_pair"])
            rows = encode(task, self.tokenizer, [dict(zip(task.text_fields, texts, strict=True))])
            return collate(self.tokenizer, rows)

    return LinearHeadPipeline


def _found(
    reference: str | Path,
    hub: str | Path | PackageHub | None,
    backbone: str | Path | None,
    revision: str | None,
    policy: Policy | None,
) -> tuple[Package, Checkpoint]:
    from sparsehub.backbone import open_checkpoint
    from sparsehub.hub import open_hub
    from sparsehub.hub.package_loader import load_package

    opened = open_hub(hub) if isinstance(hub, str | Path) else hub
    package = load_package(str(reference), opened, policy=policy)
    record = package.manifest.backbone
    if backbone is None:  # the manifest records no revision for a folder or an installed checkpoint
        return package, open_checkpoint(record.id, revision or record.revision or None)
    return package, open_checkpoint(str(backbone), revision)


def _task_model(package: Package, checkpoint: Checkpoint, dtype: str | None) -> TaskModel:
    from sparsehub.package.materialize import native_dtype, task_model_of

    return task_model_of(package, checkpoint, dtype=dtype or native_dtype(package))


def _sentence_transformer(package: Package, task_model: TaskModel, checkpoint: Checkpoint) -> Any:
    """Written in sentence-transformers' own format, and read by it: no class of ours is inside."""
    from sparsehub.package.sentence_transformers import write_embedder

    sentence_transformers = require("sentence_transformers", "demo")
    task = package.manifest.task
    if task.kind == MULTIPLE_CHOICE or task_model.backbone.language_model is not None:
        raise UsageError(f"a task of kind {task.kind} gives no sentence embeddings", fix=f"library={TRANSFORMERS!r}")
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder:
        write_embedder(Path(folder), task_model, checkpoint, task)
        return sentence_transformers.SentenceTransformer(folder, device="cpu", local_files_only=True).eval()
