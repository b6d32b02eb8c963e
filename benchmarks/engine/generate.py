"""Text of many tasks from one language model: mixed in one batch, drained and swapped, PEFT's LoRA by adapter names."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Case, Report, Row, interleaved, verdict, write_report
from benchmarks.models import whole_delta
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.engine import Engine, GenerationLimits, Sampling
from sparsehub.package import Manifest, Package, TaskSpec
from sparsehub.package.manifest_builder import backbone_ref, delta_record

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "tiny_lm"))

# hidden size, layers, heads, keys' heads, vocabulary; random weights
SHAPES = {"6 x 384": (384, 6, 6, 2, 4096), "8 x 768": (768, 8, 12, 4, 4096)}
TASKS, SEQUENCES, PROMPT, TOKENS = 16, 16, 16, 16
ROUNDS = 7
ONE, MIXED, DRAINED, LORA_ONE, LORA = (
    "sparsehub: 16 sequences of one task",
    "sparsehub: 16 tasks, mixed",
    "sparsehub: 16 tasks, drain and swap",
    "PEFT LoRA r=8, merged: 16 sequences of one task",
    "PEFT LoRA r=8, adapter_names: 16 tasks",
)
WANTED = 0.85  # mixed, against one task


def main() -> None:
    warnings.filterwarnings("ignore")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPARSEHUB_CACHE"] = folder
        for shape in SHAPES:
            rows += measure(shape, Path(folder) / shape.replace(" ", ""))
    report = Report("generate", "Text of many tasks", rows, NOTES, checks_of(rows))
    print(write_report(report, str(torch.get_num_threads())))


NOTES = (
    f"{SEQUENCES} sequences at once, prompts of {PROMPT} random tokens, {TOKENS} new ones each, greedy, float32. The "
    "time is that of prompts and new tokens, the tokens a second are the new ones. Interleaved rounds, medians.",
    "Every task changes 0.5% of the whole model: matrices, embeddings (tied to the output layer) and norms, unevenly.",
    "`times one task`: against 16 sequences of one task, whose weights are in place; PEFT's against PEFT's own.",
    "PEFT's cases: transformers' `generate` on a batch of equal lengths, its own cache; rank 8, all linear layers.",
    "Before anything is timed, mixed and swapped texts are compared: they are equal, token for token.",
    "Llama shapes of 1B and 8B in bfloat16 need a GPU: nothing here says how fast those are.",
)


def checks_of(rows: list[Row]) -> list[str]:
    mixed = [row for row in rows if row.case == MIXED]
    return [verdict(row.setup["model"], row.measured["times one task"], WANTED, least=True) for row in mixed]


def measure(shape: str, folder: Path) -> list[Row]:
    save_llama(shape, folder)
    backbone = load_backbone(str(folder))
    limits = GenerationLimits(cache_tokens=2 * SEQUENCES * (PROMPT + TOKENS), batch_tokens=SEQUENCES * PROMPT)
    engine = Engine(backbone, generation=limits, check_seconds=0)
    for number in range(TASKS):
        engine.add(task_package(backbone, number))
    prompts = torch.randint(3, 256, (SEQUENCES, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
    many = [f"t{number % TASKS}" for number in range(SEQUENCES)]
    said = {mode: generate(engine, mode, many, prompts) for mode in ("mixed", "swap")}
    assert said["mixed"] == said["swap"], "a mixed batch says something else than its tasks alone"
    lora = lora_model(folder)
    calls: dict[str, Callable[[], Any]] = {
        ONE: lambda: generate(engine, "auto", ["t0"] * SEQUENCES, prompts),
        MIXED: lambda: generate(engine, "auto", many, prompts),
        DRAINED: lambda: generate(engine, "swap", many, prompts),
        LORA_ONE: lambda: lora_generate(lora, prompts, None),
        LORA: lambda: lora_generate(lora, prompts, many),
    }
    timings = interleaved([Case(name, call) for name, call in calls.items()], ROUNDS, warmup=1)
    setup = {"model": f"Llama {shape}", "parameters": backbone.arena.numel, "entries a task": engine.info("t0").nnz}
    speed = {name: SEQUENCES * TOKENS / timings[name].median * 1e3 for name in calls}
    base = {name: speed[LORA_ONE] if name in (LORA_ONE, LORA) else speed[ONE] for name in calls}
    return [
        Row(
            name,
            setup,
            {
                "tokens a second": speed[name],
                "times one task": speed[name] / base[name],
                "of the fastest rounds": (timings[ONE if name in (ONE, MIXED, DRAINED) else LORA_ONE].fastest)
                / timings[name].fastest,
            },
        )
        for name in calls
    ]


def generate(engine: Engine, mode: str, names: list[str], prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """All at once; the tokens of each."""
    engine.mode = mode
    asked = [
        engine.generate(name, prompt, Sampling(max_tokens=TOKENS)) for name, prompt in zip(names, prompts, strict=True)
    ]
    assert engine.generator is not None
    while not all(generation.future.done() for generation in asked):
        engine.generator.step()
    return [generation.result().tokens for generation in asked]


@torch.no_grad()
def lora_generate(model: Any, prompts: list[list[int]], names: list[str] | None) -> None:
    """names: the adapter of each sequence; None for one adapter, merged into the weights before and taken out after."""
    ids = torch.tensor(prompts)
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 2}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if names is not None:
        model.generate(**inputs, adapter_names=names, **options)
        return
    model.merge_adapter(["t0"])
    try:
        model.generate(**inputs, **options)
    finally:
        model.unmerge_adapter()


def save_llama(shape: str, folder: Path) -> None:
    """A random language model with tied embeddings, and a tokenizer of bytes."""
    from train import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    width, layers, heads, key_heads, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=int(width * 8 / 3) // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = make_tokenizer("", 300, 512)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


def task_package(backbone: Backbone, number: int) -> Package:
    """A random task, in memory."""
    delta = whole_delta(backbone, number)
    task = TaskSpec("text-generation", (), "next_token", ("text",), "", 512, ("perplexity",))
    record = delta_record("random", delta, backbone.arena.numel, backbone.digest_of)
    manifest = Manifest(1, f"t{number}", "1", task, backbone_ref(backbone), record, {})
    return Package(manifest, delta, {}, manifest.digest)


def lora_model(folder: Path) -> Any:
    """PEFT's model with an adapter of rank 8 for each task on all linear layers of the blocks."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config, adapter_name="t0")
    for number in range(1, TASKS):
        model.add_adapter(f"t{number}", config)
    return model.eval()


if __name__ == "__main__":
    main()
