"""Parts of a manifest, built from a backbone and a delta. Training, conversions and benchmarks use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparsehub.backbone import Backbone
from sparsehub.backbone.layers import LayerList, changed_layers
from sparsehub.delta import Delta
from sparsehub.package.manifest import BackboneRef, DeltaRecord, TouchedParameter
from sparsehub.package.task_spec import (
    EMBEDDING,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    REGRESSION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
)


def backbone_ref(backbone: Backbone) -> BackboneRef:
    """The manifest's reference to a loaded backbone."""
    checkpoint = backbone.checkpoint
    return BackboneRef(
        id=public_name(checkpoint.id),
        revision=checkpoint.revision,
        architecture=backbone.architecture,
        dtype=checkpoint.dtype,
        fingerprint=checkpoint.fingerprint,
        parameters=backbone.arena.numel,
    )


def public_name(reference: str) -> str:
    """A reference as it is published: of a folder its last name only, since where it lies is private."""
    return Path(reference).resolve().name if Path(reference).is_dir() else reference


def delta_record(
    method: str, delta: Delta, total: int, digest_of: Callable[[str], str], layers: LayerList | None = None
) -> DeltaRecord:
    """The manifest's record of a delta.

    total: entries of the backbone. digest_of: gives the digest of the backbone's stored tensor by parameter name.
    layers: of the backbone; without them the record does not say which of them change.
    """
    parameters = {
        name: TouchedParameter(part.shape, digest_of(name), len(part.indices))
        for name, part in delta.parameters.items()
    }
    changed = changed_layers(parameters, layers) if layers is not None else None
    return DeltaRecord(method, delta.nnz / total, delta.nnz, delta.value_kind, delta.value_dtype, parameters, changed)


def metric_names(kind: str, labels: int, scored: bool = False) -> tuple[str, ...]:
    """The names of a task kind's metrics; the first one decides which checkpoint is best.

    scored: of an embedding, whether its pairs have a score.
    """
    if kind == EMBEDDING:
        return ("spearman", "pearson") if scored else ("ndcg_at_10", "recall_at_1", "recall_at_10")
    if kind == REGRESSION:
        return ("pearson", "spearman", "mse")
    if kind == MULTI_LABEL:
        return ("average_precision", "micro_f1", "macro_f1")
    if kind == MULTIPLE_CHOICE:
        return ("accuracy",)
    if kind == TOKEN_CLASSIFICATION:
        return ("f1", "precision", "recall", "accuracy")
    if kind == TEXT_GENERATION:
        return ("perplexity", "exact_match", "token_accuracy")
    return ("accuracy", "macro_f1", "matthews", *(("f1",) if labels == 2 else ()))
