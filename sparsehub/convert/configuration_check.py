"""Whether a fine-tuned checkpoint's configuration computes what the backbone's does: a package holds weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsehub.backbone import Checkpoint
from sparsehub.backbone.backbone import read_config
from sparsehub.backbone.configuration import fields_read, is_harmless, plain
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.convert.task_inference import CONFIG_FILE
from sparsehub.convert.tensor_reader import refuse_quantised
from sparsehub.convert.tokenizer_check import has_tokenizer
from sparsehub.errors import BackboneError
from sparsehub.package.task_model import task_config
from sparsehub.package.task_spec import TEXT_GENERATION, TaskSpec

# What older models were computed with and today's transformers no longer reads, and what is meant where it is not said.
_FORMER: Mapping[str, Any] = {"position_embedding_type": "absolute"}
_ABSENT = "not said"
_SHOWN = 60  # characters of a value


def check_configuration(base: Checkpoint, tuned: Checkpoint, task: TaskSpec) -> tuple[str, ...]:
    """What a report says of harmless differences; raises `BackboneError` for any that changes what is computed."""
    refuse_quantised(tuned)
    if not (tuned.folder / CONFIG_FILE).is_file():
        return (f"{tuned.id} has no {CONFIG_FILE}: the backbone's was taken for it",)
    theirs = read_config(tuned)
    pad = load_tokenizer(base).pad_token_id
    own = read_config(base)
    mine, other = (task_config(config, task, pad).to_dict() for config in (own, theirs))
    read = fields_read(theirs)
    different = {name for name in mine.keys() | other.keys() if not _equal(name, mine, other, task)}
    padded: tuple[str, ...] = ()
    if "pad_token_id" in different and getattr(own, "pad_token_id", None) is None:
        different.discard("pad_token_id")  # the backbone pads with what its tokenizer says, and so do packages
        padded = (f"{tuned.id} pads with token {other['pad_token_id']}, packages for this backbone with {pad}",)
    _refuse(tuned, mine, other, {name for name in different if name in read or name in _FORMER})
    _check_ends(base, tuned, task)
    unread = sorted(different - read - _FORMER.keys())
    if not unread:
        return padded
    return (
        *padded,
        f"{CONFIG_FILE} of {tuned.id} differs in what transformers does not read: {', '.join(unread)}",
    )


def _check_ends(base: Checkpoint, tuned: Checkpoint, task: TaskSpec) -> None:
    """Raises `BackboneError` where generated texts end at other tokens."""
    if task.kind != TEXT_GENERATION:
        return
    found, expected = (_ends(checkpoint) for checkpoint in (tuned, base))
    if found != expected:
        raise BackboneError(
            f"texts of {tuned.id} end at other tokens than the backbone's (eos_token_id of its generation settings)",
            found=sorted(found) or "none",
            expected=sorted(expected) or "none",
            fix="give the backbone with the generation_config.json that belongs to the tuned model",
        )


def _ends(checkpoint: Checkpoint) -> set[int]:
    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    except OSError:  # none is stored: transformers takes what the configuration says
        settings = GenerationConfig.from_model_config(read_config(checkpoint))
    named = settings.eos_token_id
    own = load_tokenizer(checkpoint).eos_token_id if has_tokenizer(checkpoint.folder) else None
    found = [own, *(named if isinstance(named, list) else [named])]
    return {token for token in found if isinstance(token, int)}


def _equal(name: str, mine: Mapping[str, Any], other: Mapping[str, Any], task: TaskSpec) -> bool:
    if is_harmless(name):
        return True
    if name == "pad_token_id" and task.kind == TEXT_GENERATION:
        return True  # nothing is padded there
    if name == "tie_word_embeddings" and task.kind != TEXT_GENERATION:
        return True  # the task's model has no output layer
    default = _FORMER.get(name)
    return bool(plain(mine.get(name, default)) == plain(other.get(name, default)))


def _refuse(tuned: Checkpoint, mine: Mapping[str, Any], other: Mapping[str, Any], names: set[str]) -> None:
    if not names:
        return
    ordered = sorted(names)

    def shown(table: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}: {str(table.get(name, _ABSENT))[:_SHOWN]}" for name in ordered)

    raise BackboneError(
        f"the configuration of {tuned.id} computes something else than the backbone's with the same weights",
        found=shown(other),
        expected=shown(mine),
        fix="a package holds weights, not a configuration: give the backbone that it was tuned from",
    )
