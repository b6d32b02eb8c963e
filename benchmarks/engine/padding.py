"""Padding: how much of what an engine computes is padding, and what packing rows into one sequence would gain.

python -m benchmarks.engine.padding
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.harness import Report, Row, in_turn, verdict, write_report
from benchmarks.packages import BACKBONE, SPEC, example_texts, random_package
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.engine import Engine, Limits
from sparsehub.engine.compiled.background import ON
from sparsehub.engine.stats import BatchReport
from sparsehub.package.encoding import encode

ROWS, ROUNDS, CLIENTS = 128, 7, 16
SHORTEST, LONGEST = 8, 128  # tokens of the ragged texts
PACKED_TOKENS = (256, 512, 1024)  # that one packed pass may have
PADDED, COMPILED, PACKED = "engine's batches", "engine's batches, compiled", "packed, {} tokens a pass"
TOLERANCE = 1e-4
WORTH = 0.9  # of the time of the engine's batches: from there on packing would pay for a second way of running them


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    backbones = {PADDED: load_backbone(BACKBONE), COMPILED: load_backbone(BACKBONE)}
    watches = {name: Watch() for name in backbones}
    engines = {name: engine_on(backbone, watches[name], name) for name, backbone in backbones.items()}
    rows: list[Row] = []
    for name, texts in texts_of().items():
        rows += measure(name, texts, engines, watches, backbones[PADDED])
    for engine in engines.values():
        engine.stop()
    report = Report("padding", f"Padding in batches of {BACKBONE}", rows, NOTES, checks_of(rows))
    print(write_report(report, str(torch.get_num_threads())))


NOTES = (
    f"{ROWS} texts of one task, all queued at once, or asked for by {CLIENTS} clients, of which each waits for its "
    f"answer. tickets: the demo's; ragged: words of tickets, {SHORTEST} to {LONGEST} tokens, short and long alike.",
    "engine's batches: it puts rows of like length together, and as many as its cost model says are cheapest a token.",
    "packed: rows in the order of arrival, one after the other in one sequence, positions counted anew for each, a "
    "block-diagonal mask, transformers' own forward. torch has attention for packed sequences on GPUs alone, so "
    "a CPU multiplies every token by every other one of the pass.",
    "padding: share of the computed tokens. ms: in the backbone for all texts, medians of interleaved rounds. Packed "
    "states equal those of each text alone within 1e-4.",
)


@dataclass
class Watch:
    """Adds up the batches of an engine; it is the engine's observer."""

    tokens: int = 0
    computed: int = 0
    batches: int = 0
    seconds: float = 0.0

    def observe(self, report: BatchReport) -> None:
        """A batch has run."""
        self.tokens += sum(share.tokens for share in report.shares)
        self.computed += report.tokens
        self.batches += 1
        self.seconds += report.forward


@dataclass
class Cell:
    """What the rounds of one case gave."""

    milliseconds: list[float] = field(default_factory=list)
    padding: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)

    def add(self, watch: Watch) -> None:
        """Take over a round."""
        self.milliseconds.append(watch.seconds * 1e3)
        self.padding.append(1 - watch.tokens / watch.computed)
        self.passes.append(watch.batches)


def engine_on(backbone: Backbone, watch: Watch, name: str) -> Engine:
    compiled = {"compile_mode": ON} if name == COMPILED else {}
    limits = Limits(queue_rows=2 * ROWS)
    engine = Engine(backbone, limits, observer=watch, check_seconds=0, **compiled)
    engine.add(random_package(backbone, 0))
    engine.start()
    engine.compiler.join()
    return engine


def texts_of() -> dict[str, list[str]]:
    choices, tickets = random.Random(0), example_texts()
    words = " ".join(tickets).split()
    ragged = []
    for _ in range(ROWS):
        length = round(SHORTEST * (LONGEST / SHORTEST) ** choices.random())
        ragged.append(" ".join(choices.choices(words, k=max(1, round(length / 1.3)))))
    return {"tickets": choices.choices(tickets, k=ROWS), "ragged": ragged}


def measure(
    name: str, texts: Sequence[str], engines: Mapping[str, Engine], watches: Mapping[str, Watch], backbone: Backbone
) -> list[Row]:
    """One kind of texts, under both kinds of traffic."""
    tokenizer = engines[PADDED].tokenizer
    sequences = [row.sequences[0]["input_ids"] for row in encode(SPEC, tokenizer, [{"text": text} for text in texts])]
    refuse_wrong(backbone, sequences)
    found: list[Row] = []
    for traffic, ask in {"all at once": at_once, f"{CLIENTS} clients": by_clients}.items():
        calls: dict[str, Callable[[], Watch]] = {
            case: lambda case=case, ask=ask: watched(watches[case], lambda: ask(engines[case], texts))
            for case in engines
        }
        calls |= {PACKED.format(most): lambda most=most: packed(backbone, sequences, most) for most in PACKED_TOKENS}
        cells = {case: Cell() for case in calls}
        for place, case in enumerate(in_turn(list(calls), ROUNDS + 1)):
            watch = calls[case]()
            print(name, traffic, case, f"{watch.seconds * 1e3:.0f} ms", file=sys.stderr, flush=True)
            if place >= len(calls):
                cells[case].add(watch)
        found += rows_of({"texts": name, "traffic": traffic, "key": [name, traffic]}, cells)
    return found


def watched(watch: Watch, run: Callable[[], None]) -> Watch:
    """What an engine's batches are while something runs."""
    watch.__init__()
    run()
    return dataclasses.replace(watch)


def at_once(engine: Engine, texts: Sequence[str]) -> None:
    """All texts in one request."""
    for future in engine.classify("task0", list(texts)).futures:
        future.result(600)


def by_clients(engine: Engine, texts: Sequence[str]) -> None:
    """A text a request, of clients that wait for their answers."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(lambda text: engine.classify("task0", [text]).futures[0].result(600), texts))


def packed(backbone: Backbone, sequences: Sequence[Sequence[int]], most: int) -> Watch:
    """All texts in packed passes of at most so many tokens."""
    watch = Watch()
    for part in parts_of(sequences, most):
        start = time.perf_counter()
        backbone.module(**packed_inputs(part))
        watch.seconds += time.perf_counter() - start
        watch.tokens += sum(map(len, part))
        watch.batches += 1
    watch.computed = watch.tokens
    return watch


def parts_of(sequences: Sequence[Sequence[int]], most: int) -> list[list[Sequence[int]]]:
    parts: list[list[Sequence[int]]] = [[]]
    for sequence in sequences:
        if sum(map(len, parts[-1])) + len(sequence) > most:
            parts.append([])
        parts[-1].append(sequence)
    return parts


def packed_inputs(part: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Several texts as one row of a BERT: [1, tokens], and a mask [1, 1, tokens, tokens] that is added."""
    ids = torch.tensor([[token for sequence in part for token in sequence]])
    text_of = torch.repeat_interleave(torch.arange(len(part)), torch.tensor(list(map(len, part))))
    others = text_of[:, None] != text_of[None]
    positions = torch.cat([torch.arange(len(sequence)) for sequence in part])
    mask = torch.zeros(others.shape).masked_fill(others, -torch.inf)
    return {
        "input_ids": ids,
        "attention_mask": mask[None, None],
        "position_ids": positions[None],
        "token_type_ids": torch.zeros_like(ids),
    }


def refuse_wrong(backbone: Backbone, sequences: Sequence[Sequence[int]]) -> None:
    """Stop where packed states are not those of each text alone."""
    part = parts_of(sequences, PACKED_TOKENS[0])[0]
    found = backbone.module(**packed_inputs(part)).last_hidden_state[0].split([len(each) for each in part])
    for sequence, its in zip(part, found, strict=True):
        right = backbone.module(input_ids=torch.tensor([list(sequence)])).last_hidden_state[0]
        if (difference := float((right - its).abs().max())) > TOLERANCE:
            raise SystemExit(f"a packed pass is off by {difference:.2g}")


def rows_of(setup: Mapping[str, object], cells: Mapping[str, Cell]) -> list[Row]:
    first = cells[PADDED].milliseconds
    return [
        Row(
            case,
            setup,
            {
                "passes": statistics.median(cell.passes),
                "padding": statistics.median(cell.padding),
                "ms": statistics.median(cell.milliseconds),
                "of the engine's batches": statistics.median(
                    a / b for a, b in zip(cell.milliseconds, first, strict=True)
                ),
            },
        )
        for case, cell in cells.items()
    ]


def checks_of(rows: Sequence[Row]) -> list[str]:
    """What would be gained: the best packed passes beside the faster of the engine's two."""
    lines = []
    for key in dict.fromkeys(str(row.setup["key"]) for row in rows):
        its = {row.case: float(row.measured["ms"]) for row in rows if str(row.setup["key"]) == key}
        ours = min(its[case] for case in (PADDED, COMPILED))
        best = min(its[PACKED.format(most)] for most in PACKED_TOKENS)
        lines.append(verdict(f"{key}, packed / engine: it does not pay", best / ours, WORTH, least=True))
    return lines


if __name__ == "__main__":
    main()
