"""Decode steps that are captured and replayed say what eager ones say, whatever comes and goes between two replays."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import torch

from sparsehub.engine import Budgets, Engine, Sampling, Task
from sparsehub.engine.compiled.background import AUTO, OFF, ON
from sparsehub.engine.generation import decode_graphs
from sparsehub.engine.generation.request import TokenLog
from sparsehub.engine.generation.step_padding import padded_keys
from sparsehub.engine.rounding import power_of_two
from sparsehub.errors import CancelledError
from sparsehub.kernels import native_module
from sparsehub.package import read_package
from tests.support.cpu_graphs import cpu_graphs
from tests.support.stepped_engines import run, stepped_engines

pytestmark = pytest.mark.skipif(native_module.extension() is None, reason="only the native kernels read address tables")
PROMPTS = ["SAILOR:\n", "CLERK:\nItem: the tide", "POET:\nO north wind, that turns", "Why?", "BAKER:\nWarm bread, "]


@pytest.fixture
def graphs(monkeypatch):
    with cpu_graphs(monkeypatch) as made:
        yield made


@pytest.fixture
def engine(tiny_language, graphs):
    with stepped_engines(tiny_language.folder, compile_mode=AUTO) as make:
        yield make


def of(engine: Engine) -> decode_graphs.DecodeGraphs:
    graphs = engine.generator._batcher.graphs
    assert graphs is not None
    return graphs


def likeliest(log: TokenLog) -> dict[int, float]:
    return {its.token: its.logprob for its in log.top}


def test_sixteen_tasks_arriving_and_leaving_say_what_each_says_alone(engine, speakers, says):
    made, packages = engine(), [speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3) for i in range(16)]
    for package in packages:
        made.add(read_package(package))
    lengths, asked = [12 + (7 * i) % 23 for i in range(16)], []
    for i in range(16):
        asked.append(made.generate(f"s{i}", PROMPTS[i % 5], Sampling(max_tokens=lengths[i])))
        for _ in range(i % 4):
            made.generator.step()
    run(made, asked)
    for package, generation, length in zip(packages, asked, lengths, strict=True):
        assert list(generation.result(0).tokens) == says(package, generation.prompt, length), package
    assert made.generator.usage().pages == 0
    assert of(made).on and of(made).replays > 10 and len(of(made)) > 2


@pytest.mark.parametrize("mode", ["swap", "mixed", "auto"])
def test_every_way_of_running_says_the_same(engine, speakers, says, mode, graphs):
    made = engine(mode=mode)
    packages = [speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3) for i in range(3)]
    for package in packages:
        made.add(read_package(package))
    names, before = [0, 1, 0, 2, 1, 0, 2, 2], of(made).replays
    for turn in range(2):  # other tasks and prompts in the places of those before
        names = names[turn:] + names[:turn]
        asked = [made.generate(f"s{n}", PROMPTS[(i + turn) % 5], Sampling(max_tokens=19)) for i, n in enumerate(names)]
        run(made, asked)
        for n, generation in zip(names, asked, strict=True):
            assert list(generation.result().tokens) == says(packages[n], generation.prompt, 19)
    assert of(made).replays > before + 10
    made.arena.release_active()
    assert made.arena.check_all()


def test_log_probabilities_are_those_of_eager_steps(engine, speakers):
    """Within 1e-5, drawn tokens among them."""
    names = [*range(4), 1, 3]
    samplings = [Sampling(max_tokens=16, logprobs=5, temperature=0.7 * (i % 2), seed=i) for i in range(len(names))]
    packages = [read_package(speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3)) for i in range(4)]
    said = []
    for mode in (OFF, ON):
        made = engine(compile_mode=mode)
        for package in packages:
            made.add(package)
        asked = [
            made.generate(f"s{n}", PROMPTS[i % 5], sampling)
            for i, (n, sampling) in enumerate(zip(names, samplings, strict=True))
        ]
        run(made, asked)
        said.append([generation.result(0) for generation in asked])
        if mode == OFF:
            assert made.generator._batcher.graphs is None
    assert of(made).replays > 10
    for eager, replayed in zip(*said, strict=True):
        assert eager.tokens == replayed.tokens
        for one, other in zip(eager.logs, replayed.logs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
            assert likeliest(one) == pytest.approx(likeliest(other), abs=1e-5)


def test_swap_and_mixed_steps_and_prompts_take_turns(engine, speakers, says):
    made = engine()
    packages = [speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3) for i in range(3)]
    for package in packages:
        made.add(read_package(package))
    owners, asked = [*packages, None, packages[0]], []
    for i, mode in enumerate(["swap", "mixed", "auto", "swap", "mixed"] * 3):
        made.mode = mode
        name = ["s0", "s1", "s2", None, "s0"][i % 5]
        asked.append((made.generate(name, PROMPTS[i % 5], Sampling(max_tokens=9 + i)), owners[i % 5], 9 + i))
        for _ in range(5):
            made.generator.step()
    run(made, [generation for generation, _, _ in asked])
    for generation, owner, length in asked:
        assert list(generation.result().tokens) == says(owner, generation.prompt, length)


def test_a_replay_reads_nothing_of_a_task_that_was_evicted(engine, speakers, says):
    """Its memory is overwritten, as another task's would be; then it comes back to other addresses."""
    made = engine()
    packages = [speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3) for i in range(3)]
    for package in packages:
        made.add(read_package(package))

    def ask(*numbers):
        asked = [made.generate(f"s{n}", PROMPTS[n], Sampling(max_tokens=12)) for n in numbers]
        run(made, asked)
        for n, generation in zip(numbers, asked, strict=True):
            assert list(generation.result().tokens) == says(packages[n], generation.prompt, 12)

    ask(0, 1)
    ask(0, 1)
    made.generator.step()  # idle: nothing holds the batch
    resident = made._residency.handle(read_package(packages[0]).digest).resident
    made.remove("s0")
    for part in resident.adapter.parts.values():
        for tensor in part.tensors:
            tensor.fill_(1 if tensor.dtype != torch.float32 else torch.nan)
    before = of(made).replays
    ask(1, 2)
    made.add(read_package(packages[0]))
    ask(0, 2)
    ask(2, 0)
    assert of(made).replays > before


def test_a_cancelled_text_leaves_and_others_go_on(engine, speakers, says):
    made, package = engine(), speakers.write("one", "text-generation", seed=40, scale=0.3)
    made.add(read_package(package))
    asked = [made.generate(name, PROMPTS[i], Sampling(max_tokens=25)) for i, name in enumerate(["one", None, "one"])]
    for _ in range(9):
        made.generator.step()
    asked[0].cancel()
    run(made, asked)
    with pytest.raises(CancelledError):
        asked[0].result(0)
    for generation, owner in ((asked[1], None), (asked[2], package)):
        assert list(generation.result().tokens) == says(owner, generation.prompt, 25)
    assert made.generator.usage().pages == 0


def test_damaged_tables_are_found_before_a_replay_reads_them(engine, speakers):
    made, package = engine(), speakers.write("one", "text-generation", seed=40, scale=0.3)
    made.add(read_package(package))
    asked = [made.generate(name, PROMPTS[0], Sampling(max_tokens=30)) for name in ("one", None)]
    for _ in range(9):
        made.generator.step()
    with torch.inference_mode():
        made.generator._runner._packer._memory._tables[0, 1, 0] ^= 1 << 40
    run(made, asked)
    for generation in asked:
        assert "address tables in memory are damaged" in str(generation.future.exception())


def test_a_capture_that_fails_leaves_steps_eager_with_one_line(engine, speakers, says, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(decode_graphs, "capture", fail)
    made, package = engine(), speakers.write("one", "text-generation", seed=40, scale=0.3)
    made.add(read_package(package))
    asked = [made.generate(name, PROMPTS[0], Sampling(max_tokens=20)) for name in ("one", None)]
    run(made, asked)
    for generation, owner in zip(asked, (package, None), strict=True):
        assert list(generation.result().tokens) == says(owner, generation.prompt, 20)
    told = [record for record in caplog.records if "CUDA graphs" in record.message]
    assert len(told) == 1 and told[0].levelno == logging.WARNING and "not permitted" in told[0].message
    assert not of(made).on and made.generator._batcher.padded_rows == 0


def test_without_memory_graphs_are_dropped_and_the_step_runs_again(engine, says, graphs, caplog, monkeypatch):
    made = engine()
    asked = made.generate(None, PROMPTS[0], Sampling(max_tokens=30))
    for _ in range(12):
        made.generator.step()
    assert of(made).replays and graphs

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    for graph in graphs:
        monkeypatch.setattr(graph, "replay", full)
    run(made, [asked])
    assert list(asked.result().tokens) == says(None, asked.prompt, 30)
    assert not of(made).on and len(of(made)) == 0 and "no memory left" in caplog.text
    assert all(len(graph) == 0 for graph in graphs)


def test_there_are_only_so_many_graphs(engine, says, graphs, monkeypatch):
    monkeypatch.setattr(decode_graphs, "MOST_GRAPHS", 2)
    made = engine()
    for count in (1, 2, 4, 1, 2, 4):
        asked = [made.generate(None, PROMPTS[i], Sampling(max_tokens=9)) for i in range(count)]
        run(made, asked)
        for generation in asked:
            assert list(generation.result().tokens) == says(None, generation.prompt, 9)
        assert len(of(made)) <= 2
    assert sum(len(graph) > 0 for graph in graphs) <= 2


def test_graphs_take_only_so_much_memory(engine, says, monkeypatch):
    monkeypatch.setattr(decode_graphs, "MOST_BYTES", 0)
    made = engine()
    for count in (1, 2, 4):
        asked = [made.generate(None, PROMPTS[i], Sampling(max_tokens=9)) for i in range(count)]
        run(made, asked)
        for generation in asked:
            assert list(generation.result().tokens) == says(None, generation.prompt, 9)
    assert len(of(made)) == 1  # the one that grew the pool


def test_a_wrong_replay_is_found_at_the_start(engine, says, caplog, monkeypatch):
    """As if a graph had read what it was captured with."""
    real = decode_graphs.capture

    @contextmanager
    def stale(device, pool):
        with real(device, pool) as made:
            yield made
        monkeypatch.setattr(made.graph, "replay", lambda: None)

    monkeypatch.setattr(decode_graphs, "capture", stale)
    made = engine()
    assert not of(made).on and "a replayed step is off by" in caplog.text
    asked = made.generate(None, PROMPTS[0], Sampling(max_tokens=20))
    run(made, [asked])
    assert list(asked.result().tokens) == says(None, asked.prompt, 20)


def test_a_task_leaves_memory_and_comes_back_between_replays(engine, speakers, says):
    packages = [read_package(speakers.write(f"m{i}", "text-generation", seed=60 + i, scale=0.3)) for i in range(3)]
    made = engine()
    for package in packages:
        made.add(package)
    one = made.usage.device_bytes // len(packages)
    made.stop(drain=0)
    small = engine(budgets=Budgets(device_bytes=2 * one + one // 2))
    for package in packages:
        small.register(Task(package.manifest.name, "1.0.0", package.digest, lambda package=package: package))
    for names in ([0, 1], [1, 2], [2, 0], [0, 1], [2, 1]):
        asked = [small.generate(f"m{n}", PROMPTS[n], Sampling(max_tokens=10)) for n in names]
        for _ in range(2000):
            if all(generation.future.done() for generation in asked):
                break
            small.generator.step(0.05)
        for n, generation in zip(names, asked, strict=True):
            package = speakers.write(f"m{n}", "text-generation", seed=60 + n, scale=0.3)
            assert list(generation.result(0).tokens) == says(package, generation.prompt, 10)
    assert small.usage.evictions and of(small).replays


def test_steps_are_padded_to_few_sizes() -> None:
    sizes = [padded_keys(count) for count in range(1, 9000)]
    assert all(size >= count for count, size in enumerate(sizes, 1)) and sizes == sorted(sizes)
    assert sorted(set(sizes)) == [256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096,
                                  5120, 6144, 7168, 8192, 10240]  # fmt: skip
    assert [power_of_two(count) for count in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]
