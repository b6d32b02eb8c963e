"""Random checkpoints of tiny base models, with tokenizers: for tests that need weights of a family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "a good film with a great cast and a bad ending",
    "who wrote the book about the river in the north",
    "where is the city that never sleeps",
    "angela merkel met the king of spain in berlin on monday",
    "what a boring slow and awful story",
    "this was fun bright and lovely to watch",
]
_WIDTH, _LAYERS, _HEADS, _POSITIONS = 32, 2, 4, 64
_ENCODER = {
    "hidden_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": _POSITIONS,
}
_SHAPES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "max_position_embeddings": _POSITIONS + 2},
    "distilbert": {"dim": _WIDTH, "n_layers": _LAYERS, "n_heads": _HEADS, "hidden_dim": 64},
    "deberta-v2": {
        **_ENCODER,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    "modernbert": {**_ENCODER, "local_attention": 8},
    "llama": {**_ENCODER, "num_key_value_heads": 2},
    "gpt2": {"n_embd": _WIDTH, "n_layer": _LAYERS, "n_head": _HEADS, "n_positions": _POSITIONS},
}
_WITH_TOKEN_TYPES = ("bert", "deberta-v2")
_BYTE_LEVEL = ("roberta", "modernbert", "llama", "gpt2")
_DECODERS = ("llama", "gpt2")


def save_tiny_checkpoint(family: str, folder: Path) -> None:
    """Write a random base model (2 layers of 32) and its tokenizer.

    family: bert, roberta, distilbert, deberta-v2, modernbert, llama, gpt2.
    """
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _tokenizer(family)
    ids = {
        f"{role}_token_id": value
        for role in ("pad", "bos", "eos", "cls", "sep")
        if (value := getattr(tokenizer, f"{role}_token_id")) is not None
    }
    config = transformers.AutoConfig.for_model(family, vocab_size=len(tokenizer), **_SHAPES[family], **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.AutoModel.from_config(config)
    numbers = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(4)  # the usual start is so near zero that all answers look alike
            if name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=numbers)  # zero from the start: to lose or double it would not show
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(family: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = ["input_ids", *(["token_type_ids"] if family in _WITH_TOKEN_TYPES else []), "attention_mask"]
    trained, special = _byte_level(family) if family in _BYTE_LEVEL else _word_pieces()
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, model_input_names=names, model_max_length=_POSITIONS, **special
    )


def _word_pieces() -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = sorted({word for sentence in _SENTENCES for word in sentence.split()})
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*special.values(), *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = _template(tokenizer, "[CLS]", "[SEP]")
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, special


def _byte_level(family: str) -> tuple[Any, dict[str, str]]:
    """Spaces belong to the word that follows them; decoders add nothing at the end, and gpt2 has no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    if family == "gpt2":
        del special["pad_token"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special.values()), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    if family not in _DECODERS:
        special |= {"cls_token": "<s>", "sep_token": "</s>"}
        tokenizer.post_processor = _template(tokenizer, "<s>", "</s>")
    return tokenizer, special


def _template(tokenizer: Any, first: str, last: str) -> Any:
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
