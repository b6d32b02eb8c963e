"""Train a small language model of the Llama shape with plain transformers: two or three minutes on one core.

    python examples/tiny_lm/train.py --out tiny-lm
    python examples/tiny_lm/train.py --out tiny-lm --text play.txt --steps 200

Without --text it reads tinyshakespeare from `../shared/corpora` beside the checkout, and where there is none it writes
the play of `voices.py`. What comes out is a checkpoint as any other: `AutoModelForCausalLM` loads it, and
`sparsehub train --kind text-generation --backbone tiny-lm` makes deltas for it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpora" / "tinyshakespeare.txt"
HELD_OUT = 0.05  # of the text, its end: never trained on
SHAPE = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
# One turn of a conversation is a name, a colon and what is said, as in a play.
CHAT = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}{{ message['role'].upper() + ':\n' }}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nASSISTANT:\n' }}{% endif %}"
)
Say = Callable[[str], None]


def default_text() -> str:
    """tinyshakespeare where it lies beside the checkout, a play of our own otherwise."""
    if CORPUS.is_file():
        return CORPUS.read_text(encoding="utf-8")
    from voices import play

    return play(12_000)


def make_tokenizer(text: str, size: int, context: int) -> Any:
    """Byte pairs over bytes: every text has tokens, and they give it back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **special,
    )
    made.chat_template = CHAT
    return made


def train_lm(
    out: Path,
    text: str,
    *,
    steps: int = 400,
    batch: int = 16,
    length: int = 128,
    vocabulary: int = 768,
    context: int = 256,
    shape: dict[str, int] = SHAPE,
    learning_rate: float = 3e-3,
    seed: int = 0,
    say: Say = lambda _: None,
) -> float:
    """Train and write a checkpoint with its tokenizer; returns the perplexity per token of the held-out end."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(text, vocabulary, context)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    cut = int(len(ids) * (1 - HELD_OUT))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=shape["num_attention_heads"],
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1, betas=(0.9, 0.98))
    draw, warmup, begun = torch.Generator().manual_seed(seed), max(1, steps // 20), time.monotonic()
    say(f"{model.num_parameters():,} parameters, {cut:,} tokens of text, {steps} steps of {batch} x {length}")
    for step in range(steps):
        rate = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        starts = torch.randint(cut - length, (batch,), generator=draw)
        rows = torch.stack([ids[start : start + length] for start in starts])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            say(f"step {step + 1}: loss {float(loss.detach()):.3f}, {time.monotonic() - begun:.0f} s")
    perplexity = held_out_perplexity(model, ids[cut:], length)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return perplexity


def held_out_perplexity(model: Any, ids: Any, length: int) -> float:
    """Of the tokens in pieces of `length`, each piece without what came before it."""
    import torch

    rows = ids[: len(ids) // length * length].view(-1, length)
    model.eval()
    with torch.inference_mode():
        losses = [float(model(input_ids=part, labels=part).loss) * len(part) for part in rows.split(32)]
    return math.exp(sum(losses) / len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the checkpoint")
    parser.add_argument("--text", type=Path, help="a plain text to train on")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8") if arguments.text else default_text()
    perplexity = train_lm(arguments.out, text, steps=arguments.steps, seed=arguments.seed, say=print)
    print(f"held-out perplexity {perplexity:.1f}; wrote {arguments.out}")


if __name__ == "__main__":
    main()
