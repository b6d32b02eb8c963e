"""Load a checkpoint's own tokenizer, with a padding token."""

from __future__ import annotations

from typing import Any

from sparsehub.backbone.checkpoint import Checkpoint
from sparsehub.backbone.gguf_file import gguf_option
from sparsehub.errors import BackboneError

UNLIMITED = 1 << 20  # tokenizers without a limit of their own report absurd ones


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """transformers' tokenizer of a checkpoint; one without a padding token pads with its end token.

    A GGUF file's own is read where no tokenizer files lie beside it.
    """
    from transformers import AutoTokenizer

    folder = checkpoint.folder
    try:
        option = {} if (folder / "tokenizer_config.json").is_file() else gguf_option(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **option)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{checkpoint.id} has no tokenizer that transformers can load", found=str(error)) from error
    if len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_tokens)):
        raise BackboneError(  # transformers makes up a tokenizer where the folder has none
            f"{checkpoint.id} has no tokenizer: only special tokens were found",
            fix="put the checkpoint's tokenizer files beside its weights",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise BackboneError(f"the tokenizer of {checkpoint.id} has neither a padding nor an end token")
    return tokenizer


def max_tokens(tokenizer: Any, config: Any) -> int:
    """Tokens of one sequence that the tokenizer and the model's position table allow."""
    positions = getattr(config, "max_position_embeddings", None) or UNLIMITED
    return min(int(tokenizer.model_max_length), int(positions), UNLIMITED)
