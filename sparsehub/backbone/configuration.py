"""What a configuration says of a forward pass: the fields that a package records, and that an extraction compares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# Fields that change no number of a forward pass in evaluation mode; every other field is compared.
HARMLESS = frozenset(
    {"_name_or_path", "name_or_path", "_commit_hash", "architectures", "transformers_version", "torch_dtype", "dtype",
     "use_cache", "output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id", "num_labels",
     "problem_type", "finetuning_task", "task_specific_params", "initializer_range", "initializer_cutoff_factor",
     "gradient_checkpointing", "chunk_size_feed_forward", "deterministic_flash_attn", "sparse_prediction",
     "sparse_pred_ignore_index", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"}
)  # fmt: skip
_DROPOUT = re.compile("dropout|pdrop|layerdrop|drop_rate|drop_prob")


def is_harmless(name: str) -> bool:
    """Whether a field changes no number of a forward pass in evaluation mode."""
    return name in HARMLESS or _DROPOUT.search(name) is not None


def fields_read(config: Any) -> set[str]:
    """The fields that a configuration's class declares, which models read."""
    try:
        return set(type(config)().to_dict())
    except Exception:  # a model family's own code: then every field counts
        return set(config.to_dict())


def plain(value: Any) -> Any:
    """A nested setting without what says nothing: a table of harmless fields or of None is an empty one."""
    if isinstance(value, Mapping):
        kept = {str(name): plain(item) for name, item in value.items() if not is_harmless(str(name))}
        return {name: item for name, item in kept.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def computed_with(config: Any) -> dict[str, Any]:
    """What transformers' models compute with, of their configuration, by field; as JSON can hold it."""
    read = fields_read(config)
    found = plain({name: value for name, value in config.to_dict().items() if name in read})
    return {name: _as_json(value) for name, value in found.items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    finite = isinstance(value, float) and math.isfinite(value)
    return value if finite or isinstance(value, str | int | bool | None) else str(value)
