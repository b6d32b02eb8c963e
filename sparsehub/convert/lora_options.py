"""Which options of PEFT's LoRA an extraction supports; everything else is refused by name, with the way out.

W = W0 + s B A holds only where nothing else was trained and W0 is still the backbone's weight. So this is a list of
what is allowed: an option or an initialisation that is not on it is refused, also one that a later PEFT brings. A test
compares what is on it with PEFT's own merge, and fails where the installed PEFT has a field that is not named here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from sparsehub.errors import UsageError

MERGE = "merge it into its model with PEFT (merge_and_unload), save that, and extract from the checkpoint"
CONVERT = (
    f"{MERGE}; or save it as a plain LoRA with save_pretrained(folder, path_initial_model_for_weight_conversion=...), "
    "as PEFT's guide to this initialisation says, and put its head beside it, which PEFT leaves out there"
)

# Options that no merged weight depends on, whatever their value: what a run was called, which modules were chosen (the
# stored tensors say which), what happens while training only.
HARMLESS = frozenset(
    {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
     "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "lora_dropout",
     "runtime_config", "megatron_core", "qalora_group_size", "fan_in_fan_out",
     "loftq_config", "eva_config", "corda_config", "lora_ga_config"}  # of initialisations: see `INITIALISATIONS`
)  # fmt: skip
# Options that the formula reads.
SCALING = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"})
# Initialisations that leave the backbone's weights as they are.
INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Those that move them, which PEFT can convert to a plain LoRA.
CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")
# Options with which a LoRA is more than the formula, and what each does.
REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA also rescales every column of the weight",
    "bias": "the biases of the backbone were trained too",
    "lora_bias": "the product has a bias of its own",
    "trainable_token_indices": "rows of the embedding were trained too",
    "target_parameters": "parameters without a module of their own were changed",
    "alora_invocation_tokens": "an activated LoRA is on for some tokens only",
    "arrow_config": "Arrow chooses between several LoRAs for every token",
    "use_qalora": "QA-LoRA pools the input before the product",
    "use_bdlora": "the matrices of BD-LoRA are block-diagonal",
    "kasa_config": "KaSA moves the backbone's weights and has a third matrix",
    "velora_config": "VeLoRA keeps a projection of its own beside the product",
    "monteclora_config": "MonteCLoRA samples its weights",
    "layer_replication": "layers of the backbone were repeated",
    "megatron_config": "Megatron's parallel layers store a part of each matrix",
    "ensure_weight_tying": "one LoRA stands in two layers that share a weight",
}
_OFF: tuple[Any, ...] = (None, False, "none", "", [], {})


def check_lora_options(config: Mapping[str, Any]) -> None:
    """Raises `UsageError` for an adapter_config.json of a LoRA that says more than W0 + s B A, naming the option."""
    _check_initialisation(config.get("init_lora_weights", True))
    for key, value in config.items():
        if key in HARMLESS or key in SCALING or key == "init_lora_weights" or _is_off(value):
            continue
        raise UsageError(
            f"a LoRA with {key} is more than a product of two matrices: "
            + REFUSED.get(key, "this option is not known here"),
            found=_shown(key, value),
            fix=MERGE,
        )


def _check_initialisation(value: object) -> None:
    if any(value is known or (isinstance(value, str) and value == known) for known in INITIALISATIONS):
        return
    convertible = isinstance(value, str) and value.lower().startswith(CONVERTIBLE)
    raise UsageError(
        "this initialisation of a LoRA moves the backbone's own weights, so the adapter alone is not the change",
        found=_shown("init_lora_weights", value),
        expected=", ".join(json.dumps(known) for known in INITIALISATIONS),
        fix=CONVERT if convertible else MERGE,
    )


def _is_off(value: object) -> bool:
    return any(type(value) is type(off) and value == off for off in _OFF)


def _shown(key: str, value: object) -> str:
    return f"{key}: {json.dumps(value)}"[:200]


# For each method that is sparse already: which options change nothing that is stored, and what may not be set.
SPARSE_HARMLESS: Mapping[str, frozenset[str]] = {
    "SHIRA": frozenset({"r", "mask_type", "random_seed", "init_weights", "fan_in_fan_out"}),
    "SUPERTUNING": frozenset({"sparsity", "select_top", "init_weights", "save_precomputed_indices"}),
}


def check_sparse_options(kind: str, config: Mapping[str, Any]) -> None:
    """Raises `UsageError` for a SHiRA or Supertuning adapter with an option that may be more than W0 + D."""
    if kind == "SUPERTUNING" and config.get("r") is not None:
        raise UsageError(
            "a Supertuning adapter with `r` has a low-rank part beside its sparse one",
            found=f"r: {config['r']}",
            fix=MERGE,
        )
    for key, value in config.items():
        if key not in HARMLESS and key not in SPARSE_HARMLESS[kind] and not _is_off(value):
            raise UsageError(f"an option of {kind} that is not known here", found=_shown(key, value), fix=MERGE)


CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "LORA": check_lora_options,
    "SHIRA": lambda config: check_sparse_options("SHIRA", config),
    "SUPERTUNING": lambda config: check_sparse_options("SUPERTUNING", config),
}
