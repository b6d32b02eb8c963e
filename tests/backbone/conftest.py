"""Tiny random models of every architecture that the backbone tests load; nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": _SMALL,
    "roberta": _SMALL,
    "distilbert": {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "deberta-v2": {
        **_SMALL,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    "modernbert": {**_SMALL, **_SPECIAL},
    "llama": {**_SMALL, "num_key_value_heads": 2},
    "gpt2": {
        "vocab_size": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 40,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
SaveTiny = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def save_tiny(tmp_path: Path) -> SaveTiny:
    """Save a tiny model: save_tiny(kind, auto="AutoModel", folder="model", **options of save_pretrained)."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def save(kind: str, auto: str = "AutoModel", folder: str = "model", **options: Any) -> Path:
        torch.manual_seed(7)
        config = transformers.AutoConfig.for_model(kind, **SHAPES[kind])
        model = getattr(transformers, auto).from_config(config)
        model.save_pretrained(tmp_path / folder, **options)
        return tmp_path / folder

    return save
