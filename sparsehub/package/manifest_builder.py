"""Parts of a manifest, built from a backbone and a delta. Training, conversions and benchmarks use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from sparsehub.backbone import Backbone
from sparsehub.delta import Delta
from sparsehub.package.delta_stats import split_name
from sparsehub.package.manifest import BackboneRef, DeltaRecord, TouchedParameter
from sparsehub.package.task_spec import MULTIPLE_CHOICE, REGRESSION, TEXT_GENERATION, TOKEN_CLASSIFICATION

# How parameters outside the layers begin that are read after them; any other is taken to be read before.
_AFTER = ("pooler.", "norm.", "final_norm.", "ln_f.", "lm_head.", "embed_out.")


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
    method: str, delta: Delta, total: int, digest_of: Callable[[str], str], names: Iterable[str] = ()
) -> DeltaRecord:
    """The manifest's record of a delta.

    total: entries of the backbone. digest_of: gives the digest of the backbone's stored tensor by parameter name.
    names: of all its parameters; without them the record does not say which layers change.
    """
    parameters = {
        name: TouchedParameter(part.shape, digest_of(name), len(part.indices))
        for name, part in delta.parameters.items()
    }
    layers = changed_layers(parameters, names)
    return DeltaRecord(method, delta.nnz / total, delta.nnz, delta.value_kind, delta.value_dtype, parameters, layers)


def changed_layers(touched: Iterable[str], names: Iterable[str]) -> tuple[int, int] | None:
    """The first changed layer, and how many layers there are; None where `names`, of all parameters, is empty.

    A first layer of -1: something before the layers changes; one past the last: only what comes after them does.
    """
    numbers = [split_name(name)[1] for name in names]
    if not numbers:
        return None
    count = 1 + max((number for number in numbers if number is not None), default=-1)
    places = []
    for name in touched:
        number = split_name(name)[1]
        places.append(number if number is not None else count if name.startswith(_AFTER) else -1)
    return min(places, default=count), count


def metric_names(kind: str, labels: int) -> tuple[str, ...]:
    """The names of a task kind's metrics; the first one decides which checkpoint is best."""
    if kind == REGRESSION:
        return ("pearson", "spearman", "mse")
    if kind == MULTIPLE_CHOICE:
        return ("accuracy",)
    if kind == TOKEN_CLASSIFICATION:
        return ("f1", "precision", "recall", "accuracy")
    if kind == TEXT_GENERATION:
        return ("perplexity", "exact_match", "token_accuracy")
    return ("accuracy", "macro_f1", "matthews", *(("f1",) if labels == 2 else ()))
