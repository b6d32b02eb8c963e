"""The checkpoint's own tokenizer, ready to pad."""

from __future__ import annotations

from typing import Any

from sparsehub.backbone.checkpoint import Checkpoint
from sparsehub.errors import BackboneError


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """transformers' tokenizer of a checkpoint; one without a padding token pads with its end token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{checkpoint.id} has no tokenizer that transformers can load", found=str(error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise BackboneError(f"the tokenizer of {checkpoint.id} has neither a padding nor an end token")
    return tokenizer
