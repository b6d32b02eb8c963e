"""Padding: how much of what an engine computes is padding, and what its batches would take packed into one sequence.

python -m benchmarks.engine.padding
"""

from __future__ import annotations

import itertools
import random
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from benchmarks.harness import Case, Report, Row, interleaved, verdict, write_report
from benchmarks.packages import BACKBONE, example_texts, random_package
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.engine import Engine, Limits
from sparsehub.engine.compiled.background import AUTO
from sparsehub.engine.stats import BatchReport

ROWS, ROUNDS, CLIENTS = 128, 11, 16
SHORTEST, LONGEST = 8, 96  # tokens of the ragged texts
EAGER, COMPILED, PACKED = "padded", "padded, as the engine runs them", "packed"
TOLERANCE = 1e-4
WORTH = 0.9  # of the engine's time: from there on packing would pay for a second way of running batches
NOTES = (
    f"{ROWS} texts of one task, all queued at once, or asked for by {CLIENTS} clients, of which each waits for its "
    f"answer. tickets: the demo's; ragged: words of tickets, {SHORTEST} to {LONGEST} tokens, short and long alike.",
    "The engine makes the batches: rows of like length together, as many as its cost model says are cheapest a token. "
    "Then batches of the same rows and tokens are run again, nothing beside them, in each of the ways; random tokens.",
    "padded: transformers' own forward. As the engine runs them: compiled where that is faster. packed: one row after "
    "the other in one sequence, positions counted anew for each, a block-diagonal mask, transformers' own forward. "
    "torch has attention for packed sequences on GPUs alone: a CPU multiplies each token by every other of the pass.",
    "padding: share of the computed tokens. ms: of all batches, medians of interleaved rounds. Packed states "
    f"equal the padded ones within {TOLERANCE:g}.",
)
Batch = Sequence[Sequence[int]]  # the token ids of each row


class Watch:
    """Notes the batches of an engine; it is the engine's observer."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int, int]] = []  # rows, tokens of the longest, tokens of all

    def observe(self, report: BatchReport) -> None:
        """A batch has run."""
        tokens = sum(share.tokens for share in report.shares)
        self.shapes.append((report.rows, report.tokens // report.rows, tokens))


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    watch = Watch()
    limits = Limits(queue_rows=2 * ROWS)
    engine = Engine(load_backbone(BACKBONE), limits, observer=watch, check_seconds=0, compile_mode=AUTO)
    engine.add(random_package(engine.backbone, 0))
    engine.start()
    engine.compiler.join()
    rows: list[Row] = []
    for name, texts in texts_of().items():
        for traffic, ask in {"all at once": at_once, f"{CLIENTS} clients": by_clients}.items():
            for _ in range(2):  # the first time it learns
                watch.shapes.clear()
                ask(engine, texts)
            print(name, traffic, len(watch.shapes), "batches", file=sys.stderr, flush=True)
            rows += measure(engine, [batch_of(*shape) for shape in watch.shapes], {"texts": name, "traffic": traffic})
    engine.stop()
    report = Report("padding", f"Padding in batches of {BACKBONE}", rows, NOTES, checks_of(rows))
    print(write_report(report, str(torch.get_num_threads())))


def texts_of() -> dict[str, list[str]]:
    choices, tickets = random.Random(0), example_texts()
    words = " ".join(tickets).split()
    ragged = []
    for _ in range(ROWS):
        length = round(SHORTEST * (LONGEST / SHORTEST) ** choices.random())
        ragged.append(" ".join(choices.choices(words, k=max(1, round(length / 1.3)))))
    return {"tickets": choices.choices(tickets, k=ROWS), "ragged": ragged}


def at_once(engine: Engine, texts: Sequence[str]) -> None:
    """All texts in one request."""
    for future in engine.classify("task0", list(texts)).futures:
        future.result(600)


def by_clients(engine: Engine, texts: Sequence[str]) -> None:
    """A text a request, of clients that wait for their answers."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(lambda text: engine.classify("task0", [text]).futures[0].result(600), texts))


def batch_of(rows: int, longest: int, tokens: int) -> Batch:
    """Random rows of these sizes: one is the longest, the others share what is left."""
    others = rows - 1
    lengths = [longest, *((tokens - longest + place) // others for place in range(others))]
    numbers = torch.Generator().manual_seed(tokens)
    return [torch.randint(1000, 20000, (length,), generator=numbers).tolist() for length in lengths]


def measure(engine: Engine, batches: Sequence[Batch], setup: Mapping[str, str]) -> list[Row]:
    backbone = engine.backbone
    padded, packed = [padded_inputs(batch) for batch in batches], [packed_inputs(batch) for batch in batches]
    refuse_wrong(backbone, padded, packed)
    ways: dict[str, Callable[[], object]] = {
        EAGER: lambda: [backbone.module(**inputs) for inputs in padded],
        COMPILED: lambda: [engine.compiler.plain(inputs) for inputs in padded],
        PACKED: lambda: [backbone.module(**inputs) for inputs in packed],
    }
    timings = interleaved([Case(name, run) for name, run in ways.items()], ROUNDS)
    real = sum(len(row) for batch in batches for row in batch)
    padding = 1 - real / sum(inputs["input_ids"].numel() for inputs in padded)
    return [
        Row(
            way,
            {**setup, "batches": len(batches), "key": [*setup.values()]},
            {
                "padding": 0.0 if way == PACKED else padding,
                "ms": timing.median,
                "of the engine's": timing.median / timings[COMPILED].median,
                "fastest, of the engine's": timing.fastest / timings[COMPILED].fastest,
            },
        )
        for way, timing in timings.items()
    ]


def padded_inputs(batch: Batch) -> dict[str, Tensor]:
    """[rows, length of the longest]."""
    ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(batch):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def packed_inputs(batch: Batch) -> dict[str, Tensor]:
    """All rows as one row of a BERT: [1, tokens], and a mask [1, 1, tokens, tokens] that is added."""
    ids = torch.tensor([list(itertools.chain(*batch))])
    row_of = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(list(map(len, batch))))
    others = row_of[:, None] != row_of[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.zeros(others.shape).masked_fill(others, -torch.inf)[None, None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in batch])[None],
        "token_type_ids": torch.zeros_like(ids),
    }


def refuse_wrong(backbone: Backbone, padded: Sequence[dict[str, Tensor]], packed: Sequence[dict[str, Tensor]]) -> None:
    """Stop where packed states are not the padded ones."""
    for one, other in zip(padded, packed, strict=True):
        right = backbone.module(**one).last_hidden_state[one["attention_mask"].bool()]
        difference = float((right - backbone.module(**other).last_hidden_state[0]).abs().max())
        if difference > TOLERANCE:
            raise SystemExit(f"a packed pass is off by {difference:.2g}")


def checks_of(rows: Sequence[Row]) -> list[str]:
    """What packing would gain."""
    packed = [row for row in rows if row.case == PACKED]
    return [
        verdict(
            f"{row.setup['texts']}, {row.setup['traffic']}: packed, of the engine's time, does not pay",
            float(row.measured["of the engine's"]),
            WORTH,
            least=True,
        )
        for row in packed
    ]


if __name__ == "__main__":
    main()
