"""Sixteen tasks on the same texts: trunk and branches beside one plain forward of these texts, mixed rows, and the ways
in which others ask many questions about one text."""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.trunk_peers import PLAIN, TASKS, TEXTS, TOKENS, others, resident_memory
from benchmarks.harness import Case, Report, Row, Timing, interleaved, verdict, write_report
from benchmarks.models import DENSITY, SHAPES, save_encoder
from benchmarks.packages import manifest_of, save_tokenizer
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine import Engine
from sparsehub.engine.batch_rows import BatchRows
from sparsehub.engine.batch_runner import Clock
from sparsehub.engine.compiled.background import AUTO, OFF
from sparsehub.engine.cost_model import MIXED, TRUNK
from sparsehub.engine.resident import Resident
from sparsehub.engine.target_modules import sample_batch
from sparsehub.engine.trunk_batch import trunk_batch
from sparsehub.package import Package, TaskSpec
from sparsehub.package.encoding import Encoded
from sparsehub.package.outputs import Prediction
from sparsehub.package.task_spec import FIRST, MEAN, HeadSpec

ROUNDS = 5
# By encoder, changed layers and pooling: the largest multiple of the plain forward, where one was set.
LIMITS: dict[tuple[str, int, str], float | None] = {
    ("6 x 384", 0, MEAN): 1.15,
    ("6 x 384", 1, FIRST): 1.6,
    ("6 x 384", 1, MEAN): 3.4,
    ("6 x 384", 2, MEAN): 6.0,
    ("6 x 384", 3, MEAN): None,
    ("12 x 768", 2, FIRST): 2.5,
    ("12 x 768", 2, MEAN): 3.6,
}
COMPILED = "trunk, compiled"
COMPILED_SIZES = ("6 x 384",)  # the larger one would take a quarter of an hour to compile
COMPILE_SECONDS = 900
UNSHARED_ROUNDS = 41  # of a batch that shares nothing
OFF_LIMIT = 1.02  # of a batch that shares nothing, against the same engine with trunks off
NOTES = (
    f"{TASKS} tasks, each asked about the same {TEXTS} rows of {TOKENS} tokens; interleaved rounds, medians. "
    "`times plain`: against one plain forward of these rows without any head; ours include the heads and the answers.",
    "Every task changes 0.5% of all entries of the backbone, all of them in its last layers, and has a linear head.",
    "`mixed`: what is done without trunks, a row for every task and text in one pass on the base weights.",
    "`trunk`: eager; `compiled`: its layers compiled where they are faster, as an endpoint has them.",
    "`difference`: the largest between a task's scores and those of its weights in place.",
    "Memory: each case and number in a process of its own, after an answer; the encoder and the libraries that are "
    "imported are part of it.",
    "`shares nothing`: as many rows as there are tasks, each another text; with trunks on and off.",
)


@dataclass(frozen=True)
class Setting:
    """Tasks that change the last layers of one backbone, and the texts that they are asked about."""

    engine: Engine
    tasks: Sequence[Resident]
    texts: Sequence[Encoded]
    inputs: dict[str, Tensor]

    @property
    def parts(self) -> list[BatchRows]:
        """All texts for each task."""
        return [BatchRows(self.texts, task, False) for task in self.tasks]

    @property
    def unshared(self) -> list[BatchRows]:
        """Another text for each task."""
        return [BatchRows([text], task, False) for text, task in zip(self.texts, self.tasks, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each table, but of what shares nothing")
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore")
    rows: list[Row] = []
    checks: list[str] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        os.environ["SPARSEHUB_CACHE"] = folder
        for size in ("6 x 384", "12 x 768"):
            path = Path(folder) / size.replace(" ", "")
            save_encoder(size, path)
            save_tokenizer(path)
            for encoder, layers, pooling in LIMITS:
                if encoder == size:
                    found = measure(size, path, layers, pooling, rounds)
                    rows += found
                    checks += checks_of(found, (encoder, layers, pooling))
        rows += others(Path(folder) / "6x384", rounds)
        rows += resident_memory(Path(folder) / "6x384")
    print(
        write_report(Report("trunk", "Many tasks on the same texts", rows, NOTES, checks), str(torch.get_num_threads()))
    )


def measure(size: str, folder: Path, layers: int, pooling: str, rounds: int) -> list[Row]:
    """One table: tasks that change the last `layers` of a backbone."""
    setting = made(size, folder, layers, pooling, compiled=size in COMPILED_SIZES)
    module, inputs = setting.engine.backbone.module, setting.inputs
    eager, compiled = compiled_passes(setting, wanted=size in COMPILED_SIZES)
    calls: dict[str, Callable[[], Any]] = {
        PLAIN: lambda: module(**inputs),
        "trunk": lambda: run(setting, TRUNK, setting.parts),
        **({COMPILED: lambda: run(setting, TRUNK, setting.parts)} if compiled is not None else {}),
        "mixed": lambda: run(setting, MIXED, setting.parts),
    }
    passes = {COMPILED: compiled}
    # by themselves and more often: between them is less than what follows a mixed pass of many rows is slowed by
    unshared: dict[str, Callable[[], Any]] = {
        "shares nothing, trunks on": lambda: planned(setting, "auto", setting.unshared),
        "shares nothing, trunks off": lambda: planned(setting, "mixed", setting.unshared),
    }
    differences = {"trunk": largest_difference(setting)}
    if compiled is not None:
        compiled()
        differences[COMPILED] = largest_difference(setting)
    cases = [Case(name, call, passes.get(name) or eager) for name, call in calls.items()]
    timings = interleaved(cases, rounds, warmup=1)
    eager()
    timings |= interleaved([Case(name, call) for name, call in unshared.items()], UNSHARED_ROUNDS, warmup=1)
    setup = {
        "encoder": size,
        "changed": f"the last {layers} of {SHAPES[size][0]} layers" if layers else "the head alone",
        "heads": f"{pooling} pooling",
        "entries a task": setting.tasks[0].patch.nnz,
    }
    setting.engine.stop()
    return [Row(name, setup, figures(timings, differences, name)) for name in timings]


def figures(timings: Mapping[str, Timing], differences: Mapping[str, float], name: str) -> dict[str, Any]:
    """The columns of one case."""
    timing, plain = timings[name], timings[PLAIN]
    measured: dict[str, Any] = {
        "median ms": timing.median,
        "times plain": timing.median / plain.median,
        "fastest, times plain's": timing.fastest / plain.fastest,
    }
    if name in (TRUNK, COMPILED, MIXED):
        measured["answers a second"] = TASKS * TEXTS / timing.median * 1e3
    if name in differences:
        measured["difference"] = f"{differences[name]:.1e}"
    return measured


def compiled_passes(setting: Setting, *, wanted: bool) -> tuple[Callable[[], None], Callable[[], None] | None]:
    """What has an engine's passes eager from then on, and what has them compiled, where that is wanted and can be."""
    compiler = setting.engine.compiler
    if wanted:
        compiler.start()
        compiler.join(COMPILE_SECONDS)
    found = [(passes, passes.compiled) for passes in (compiler.plain, compiler.mixed, compiler.layers)]

    def put(*, compiled: bool) -> None:
        for passes, its in found:
            passes.compiled = its if compiled else None  # type: ignore[attr-defined]

    put(compiled=False)
    made = all(its is not None for _, its in found)
    return lambda: put(compiled=False), (lambda: put(compiled=True)) if made else None


def checks_of(rows: Sequence[Row], key: tuple[str, int, str]) -> list[str]:
    """Which limits held."""
    by_case = {row.case: row.measured for row in rows}
    what = f"{key[0]}, {rows[0].setup['changed']}, {key[2]} pooling"
    on, off = by_case["shares nothing, trunks on"], by_case["shares nothing, trunks off"]
    limit, alone = LIMITS[key], on["median ms"] / off["median ms"]
    ours = [case for case in ("trunk", COMPILED) if case in by_case]
    checks = [] if limit is None else [verdict(f"{what}: {case}", by_case[case]["times plain"], limit) for case in ours]
    return [*checks, verdict(f"{what}: a batch that shares nothing", alone, OFF_LIMIT)]


def made(size: str, folder: Path, layers: int, pooling: str, *, compiled: bool = False) -> Setting:
    backbone = load_backbone(str(folder))
    engine = Engine(backbone, compile_mode=AUTO if compiled else OFF)
    names = last_layers(backbone, layers)
    tasks = []
    for number in range(TASKS):
        delta = upper_delta(backbone, names, number)
        manifest = replace(manifest_of(backbone, delta, number), task=spec_of(pooling))
        engine.add(Package(manifest, delta, head_of(size, number), f"sha256:{number:064x}"))
        handle = engine._residency.handle(f"sha256:{number:064x}")
        assert handle is not None and handle.resident is not None  # it was added
        tasks.append(handle.resident)
    inputs = sample_batch(backbone, TEXTS, TOKENS)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    texts = [Encoded(({name: tensor[row].tolist() for name, tensor in inputs.items()},)) for row in range(TEXTS)]
    return Setting(engine, tasks, texts, inputs)


def spec_of(pooling: str) -> TaskSpec:
    """A task with a linear head."""
    labels = ("a", "b", "c")
    spec = TaskSpec(
        "text-classification", labels, "single_label_classification", ("text",), "label", 128, ("accuracy",)
    )
    return replace(spec, head=HeadSpec("linear", pooling, False, "joint"))


def head_of(size: str, seed: int) -> dict[str, Tensor]:
    """The tensors of a linear head with three labels."""
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, SHAPES[size][1], generator=generator) * 0.1, "bias": torch.zeros(3)}


def last_layers(backbone: Backbone, layers: int) -> list[str]:
    """The parameters of the last layers."""
    count = backbone.config.num_hidden_layers
    prefixes = tuple(f"encoder.layer.{layer}." for layer in range(count - layers, count))
    return [name for name in backbone.arena.slots if prefixes and name.startswith(prefixes)]


def upper_delta(backbone: Backbone, names: Sequence[str], seed: int) -> Delta:
    """As many random changes as `whole_delta` makes, all in these parameters, in proportion to their sizes."""
    if not names:
        return Delta({}, "add", "float32")
    generator, parts = torch.Generator().manual_seed(seed), {}
    slots = {name: backbone.arena.slots[name] for name in names}
    share = DENSITY * backbone.arena.numel / sum(slot.numel for slot in slots.values())
    for name, slot in slots.items():
        places = torch.randperm(slot.numel, generator=generator)[: max(1, int(slot.numel * share))].sort().values
        values = torch.randn(len(places), generator=generator) * 0.01
        parts[name] = ParameterDelta(slot.shape, places, values)
    return Delta(parts, "add", "float32")


def run(setting: Setting, mode: str, parts: Sequence[BatchRows]) -> list[list[Any]]:
    """A batch in one way, with its heads."""
    trunk = trunk_batch(parts, setting.engine._loop._runner._targets) if mode == TRUNK else None
    return setting.engine._loop._runner.run(mode, parts, Clock(), trunk)


def planned(setting: Setting, mode: str, parts: Sequence[BatchRows]) -> list[list[Any]]:
    """A batch that is planned and then runs mixed, so that only the planning differs."""
    setting.engine.mode = mode
    setting.engine._planner.plan(parts)
    return run(setting, MIXED, parts)


def largest_difference(setting: Setting) -> float:
    """Between the scores of the trunk's rows and those of each task's weights in place."""
    found = run(setting, TRUNK, setting.parts)
    right = [run(setting, "swap", [part])[0] for part in setting.parts]
    pairs = [(a, b) for its, expected in zip(found, right, strict=True) for a, b in zip(its, expected, strict=True)]
    assert all(isinstance(a, Prediction) and isinstance(b, Prediction) for a, b in pairs)
    worst = max(abs(x - y) for a, b in pairs for x, y in zip(a.scores, b.scores, strict=True))
    if worst > 1e-5:
        raise SystemExit(f"trunk and branches are off by {worst:.2g}")
    return worst


if __name__ == "__main__":
    main()
