"""A whole engine with its tensors on a GPU that is not there: heads and embeddings of every kind, residency with pinned
host memory, kept states, text generation. Where two devices meet, or streams that do not wait, it is an error."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sparsehub.backbone import load_backbone
from sparsehub.backbone.arena import build_arena
from sparsehub.engine import Budgets, Engine, GenerationLimits, Sampling, Task
from sparsehub.engine import engine as engine_module
from sparsehub.engine.batch_rows import BatchRows
from sparsehub.engine.batch_runner import Clock
from sparsehub.engine.cost_model import MIXED
from sparsehub.engine.generation.decode_graphs import DecodeGraphs
from sparsehub.engine.layer_stack import LayerStack
from sparsehub.engine.model_loop import ModelLoop
from sparsehub.engine.packed_matrix import PACKERS
from sparsehub.engine.resident import HostTask, Resident
from sparsehub.engine.target_modules import TargetModules
from sparsehub.kernels import native
from sparsehub.package.encoding import encode
from sparsehub.package.outputs import Prediction
from sparsehub.package.task_spec import HeadSpec
from tests.support.fake_gpu import FakeGpu, fake_gpu, is_pinned, on_gpu
from tests.support.fake_streams import GPU
from tests.support.packed_weights import PlainWeight
from tests.support.tiny_tasks import TinyTasks, tiny_speakers

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the benchmarks and tests run on it")
MODES = ("swap", "mixed", "trunk")
TEXTS = ["a good film", "who wrote the book about the river in the north"]
PAIRS = [{"text_a": text, "text_b": "the end"} for text in TEXTS]
CHOICES = [{"text": text, "choice1": "fun", "choice2": "slow"} for text in TEXTS]


@dataclasses.dataclass(frozen=True)
class Running:
    """An engine whose backbone is on a fake GPU."""

    engine: Engine
    gpu: FakeGpu

    def finish(self, requests: Iterable[Any]) -> list[Any]:
        """Run batches until all rows of some requests are answered; the answers."""
        futures = [future for request in requests for future in request.futures]
        for _ in range(100):
            if all(future.done() for future in futures):
                break
            self.engine.step()
        return [future.result(0) for future in futures]


def fail(*_: Any) -> None:
    """Raise the error of a batch, whose rows would be run again one by one, by swap."""
    raise


@contextmanager
def started(folder: Path, packages: Sequence[Any] = (), **options: Any) -> Iterator[Running]:
    """An engine with these tasks; inside there is a fake GPU. The packages were read before: a fake tensor has no
    bytes."""
    real = load_backbone(str(folder))
    with pytest.MonkeyPatch.context() as patch, fake_gpu(patch) as gpu:
        patch.setattr(ModelLoop, "_run_alone", fail)
        on_gpu(real.whole)
        backbone = dataclasses.replace(real, arena=build_arena(real.parameters))
        engine = Engine(backbone, check_seconds=0, **options)
        for package in packages:
            engine.add(package)
        yield Running(engine, gpu)


POOLINGS = ("mean", "first", "last", "max")


def linear(pooling: str = "mean", normalize: bool = False, pair: str = "joint") -> HeadSpec:
    return HeadSpec("linear", pooling, normalize, pair)


TWO = ("text_a", "text_b")
HEADS: dict[str, tuple[str, HeadSpec | None, tuple[str, ...], Sequence[Any]]] = {
    "classes": ("text-classification", None, ("text",), TEXTS),
    "pairs": ("text-classification", None, TWO, PAIRS),
    "several": ("multi-label-classification", None, ("text",), TEXTS),
    "number": ("regression", None, ("text",), TEXTS),
    "choices": ("multiple-choice", None, ("text",), CHOICES),
    "words": ("token-classification", None, ("text",), TEXTS),
    **{
        f"linear, {pooling}": ("text-classification", linear(pooling, i % 2 == 0), ("text",), TEXTS)
        for i, pooling in enumerate(POOLINGS)
    },
    "linear, several": ("multi-label-classification", linear(), ("text",), TEXTS),
    "linear, number": ("regression", linear("first"), ("text",), TEXTS),
    "linear, choices": ("multiple-choice", linear(), ("text",), CHOICES),
    "linear, joint": ("text-classification", linear("last"), TWO, PAIRS),
    "linear, separate": ("text-classification", linear(normalize=True, pair="separate"), TWO, PAIRS),
    "linear, cosine": ("regression", linear("max", pair="cosine"), TWO, PAIRS),
}


TWICE = ("classes", "words", "linear, mean", "linear, separate")  # two tasks, whose heads run as one
EMBEDDINGS = {f"vectors-{pooling}": HeadSpec("none", pooling, i % 2 == 0) for i, pooling in enumerate(POOLINGS)}


@pytest.fixture(scope="module")
def served(tiny_tasks: TinyTasks) -> Running:
    """An engine with a task of every head and of every kind of embedding."""
    heads = [
        tiny_tasks.read(f"{number}-{i}", kind, head=spec, fields=fields, seed=i)
        for number, (name, (kind, spec, fields, _)) in enumerate(HEADS.items())
        for i in range(2 if name in TWICE else 1)
    ]
    alone = tiny_tasks.read("alone", head=linear("first"), delta=False)
    vectors = [tiny_tasks.read(name, "embedding", head=spec) for name, spec in EMBEDDINGS.items()]
    with started(tiny_tasks.folder, [*heads, alone, *vectors]) as running:
        return running


@pytest.fixture
def running(served: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """The same engine, inside a fake GPU again."""
    monkeypatch.setattr(ModelLoop, "_run_alone", fail)
    with fake_gpu(monkeypatch, served.gpu):
        yield served


def test_tasks_are_ready_for_every_way(running: Running) -> None:
    """So what is checked at the start has passed."""
    why_not = {(status.why_swap, status.why_unshared) for status in running.engine.status()}
    assert why_not == {(None, None), (None, "it changes what comes before the first layer")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", HEADS)
def test_heads_of_every_kind_answer(head: str, mode: str, running: Running) -> None:
    """One task or two, and the plain backbone beside them."""
    number, inputs = list(HEADS).index(head), HEADS[head][3]
    running.engine.mode = mode
    asked = [running.engine.classify(f"{number}-{i}", inputs) for i in range(2 if head in TWICE else 1)]
    running.finish([*asked, running.engine.embed(None, TEXTS)])


@pytest.mark.parametrize("head", TWICE)
def test_heads_of_two_tasks_run_as_one(head: str, running: Running) -> None:
    engine, number, (_, _, fields, inputs) = running.engine, list(HEADS).index(head), HEADS[head]
    rows = [row if isinstance(row, dict) else dict.fromkeys(fields, row) for row in inputs]
    groups = []
    for i in range(2):
        handle = engine._residency.handle(engine.info(f"{number}-{i}").digest)
        assert handle is not None
        task = handle.wait()
        groups.append(BatchRows(encode(task.info.spec, engine.tokenizer, rows), task, embed=False))
    assert groups[0].answered == groups[1].answered
    answers = engine._loop._runner.run(MIXED, groups, Clock())
    assert all(isinstance(answer, Prediction) for its in answers for answer in its)


def test_heads_alone_share_all_layers(running: Running) -> None:
    running.engine.mode = "trunk"
    running.finish([running.engine.classify("alone", TEXTS), running.engine.embed(None, TEXTS)])


@pytest.mark.parametrize("mode", MODES)
def test_embeddings_of_tasks_and_of_the_backbone(mode: str, running: Running) -> None:
    running.engine.mode = mode
    vectors = running.finish(running.engine.embed(name, TEXTS) for name in (*EMBEDDINGS, "0-0", None))
    assert {len(vector) for vector in vectors} == {32}


def test_what_is_in_memory_is_checked(running: Running) -> None:
    running.engine.mode = "swap"
    running.finish([running.engine.classify("0-0", TEXTS)])
    assert running.engine.arena.swap.current is not None
    assert running.engine.arena.check_all() and running.engine.arena.failures == 0


def test_a_task_is_evicted_to_pinned_memory_and_comes_back(tiny_tasks: TinyTasks) -> None:
    packages = [tiny_tasks.read(f"moved-{i}", seed=i) for i in range(2)]
    with started(tiny_tasks.folder, mode="swap", budgets=Budgets(host_bytes=1 << 30)) as running:
        engine, residency, reads = running.engine, running.engine._residency, list[str]()
        for package in packages:
            name, digest = package.manifest.name, package.digest
            engine.register(Task(name, "1.0.0", digest, functools.partial(read, package, reads)))
        engine.load("moved-0")
        residency._budgets = dataclasses.replace(residency._budgets, device_bytes=engine.usage.device_bytes * 3 // 2)
        for number in (0, 1, 0, 1):
            engine.load(f"moved-{number}")
            running.finish([engine.classify(f"moved-{number}", TEXTS)])  # which leaves it in the arena
            handle = residency.handle(packages[number].digest)
            assert handle is not None and handle.resident is not None
            assert {tensor.device for tensor in device_tensors(handle.resident)} == {GPU}
        assert [status.where for status in engine.status()] == ["host", "device"]
        assert reads == ["moved-0", "moved-1"] and engine.usage.evictions == 3
        kept = [tensor for package in packages for tensor in host_tensors(residency._hosts._tasks[package.digest])]
        assert kept and all(tensor.device.type == "cpu" and is_pinned(tensor) for tensor in kept)


def read(package: Any, reads: list[str]) -> Any:
    reads.append(package.manifest.name)
    return package


def host_tensors(host: HostTask) -> list[torch.Tensor]:
    """What is kept of a task in host memory."""
    return [*(tensor for part in host.layout.parts.values() for tensor in part), *host.head.values()]


def device_tensors(resident: Resident) -> list[torch.Tensor]:
    """What is kept of a task on the device."""
    assert resident.adapter is not None and resident.head is not None
    patch = [tensor for part in resident.patch.segments for tensor in (part.positions, part.values, part.base)]
    adapter = [tensor for part in resident.adapter.parts.values() for tensor in part.tensors]
    return [*patch, *adapter, *resident.head.parameters]


def test_a_load_waits_for_what_the_batches_before_have_begun(tiny_tasks: TinyTasks) -> None:
    """It restores the base weights, which it reads, on a stream of its own."""
    packages = [tiny_tasks.read(f"moved-{i}", seed=i) for i in range(2)]
    with started(tiny_tasks.folder, packages[:1]) as running:
        handle = running.engine._residency.handle(packages[0].digest)
        assert handle is not None
        running.engine.arena.swap.to(handle.wait().patch)
        running.engine.add(packages[1])
        assert running.engine.arena.swap.current is None


def test_texts_share_their_layers_and_their_states_are_kept(
    tiny_tasks: TinyTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks that change the last layer alone, which would be seen in values: here it is said."""
    packages = [tiny_tasks.read(f"moved-{i}", seed=i) for i in range(2)]
    monkeypatch.setattr(LayerStack, "first_changed", lambda stack, touched: 1 if touched else len(stack.modules))
    monkeypatch.setattr(engine_module, "with_resuming", with_resuming)
    with started(tiny_tasks.folder, packages, mode="trunk", budgets=Budgets(state_bytes=1 << 20)) as running:
        assert {status.why_unshared for status in running.engine.status()} == {None}
        for _ in range(2):
            asked = running.engine.classify_many(["moved-0", "moved-1"], TEXTS)
            running.finish([*asked, running.engine.embed(None, TEXTS)])
        usage = running.engine.states.usage
        assert usage.misses and usage.hits, usage


def with_resuming(_: Any, targets: TargetModules) -> TargetModules:
    """What the start's check would prove by values."""
    assert targets.layers is not None
    return dataclasses.replace(targets, layers=dataclasses.replace(targets.layers, resumes=True))


@pytest.fixture(scope="module")
def speakers(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> TinyTasks:
    """A language model of random weights, and a maker of tasks for it."""
    return tiny_speakers(tiny_checkpoint("llama"), tmp_path_factory.mktemp("speakers"))


SAMPLINGS = [
    Sampling(max_tokens=3),
    Sampling(max_tokens=3, temperature=0.8, logprobs=3),
    Sampling(max_tokens=3, temperature=1.5, top_p=0.9, seed=1),
]


def test_texts_of_many_tasks_are_generated(speakers: TinyTasks) -> None:
    """Each in its own way, prompts that are split over steps among them; then of one task alone."""
    packages = [speakers.read(f"speaker{i}", "text-generation", seed=i) for i in range(2)]
    limits = GenerationLimits(cache_tokens=512, batch_tokens=16)
    with started(speakers.folder, packages, generation=limits) as running:
        assert {status.why_swap for status in running.engine.status()} == {None}
        for mode in ("auto", "swap", "mixed"):
            running.engine.mode = mode
            together = generate(running, "speaker0", "speaker1", None)
            assert ("_sparse_lookup" in together) == (mode != "swap")
            assert ("_sparse_lookup" in generate(running, "speaker1")) == (mode == "mixed")
            assert "_sparse_lookup" not in generate(running, None)


def test_decode_steps_are_captured_and_replayed(speakers: TinyTasks) -> None:
    """Where a capture reads a value or waits, or a replay does not wait for what it reads, it is an error."""
    packages = [speakers.read(f"speaker{i}", "text-generation", seed=i) for i in range(3)]
    limits = GenerationLimits(cache_tokens=512, batch_tokens=16)
    with started(speakers.folder, packages, generation=limits, compile_mode="auto") as running:
        graphs, generator = graphs_of(running), running.engine.generator
        assert graphs.on and len(graphs) and graphs.replays  # the start has proved them
        for mode, names in (("mixed", ["speaker0", "speaker1", None]), ("swap", ["speaker2"])):
            running.engine.mode, before = mode, graphs.replays
            texts = [running.engine.generate(name, [5, 6], Sampling(max_tokens=6)) for name in names]
            while generator.step():
                pass
            assert all(text.future.done() for text in texts)
            assert graphs.on and graphs.replays > before + 2
        launches = {name for known in graphs._known.values() if known.graph for name, _, _ in known.graph.launches}
        assert {"_sparse_linear", "_sparse_lookup", "_scale_shift"} <= launches


def test_a_pass_that_waits_for_the_gpu_is_never_a_graph(
    speakers: TinyTasks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = transformers.LlamaForCausalLM.forward

    def forward(model: Any, input_ids: torch.Tensor, **inputs: Any) -> Any:
        input_ids.max().item()
        return real(model, input_ids, **inputs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    limits = GenerationLimits(cache_tokens=512, batch_tokens=16)
    with started(speakers.folder, generation=limits, compile_mode="on") as running:
        assert not graphs_of(running).on
        generate(running, None)
    assert sum("one could not be captured: CaptureError" in record.message for record in caplog.records) == 1


def graphs_of(running: Running) -> DecodeGraphs:
    generator = running.engine.generator
    assert generator is not None and generator._batcher.graphs is not None
    return generator._batcher.graphs


def generate(running: Running, *names: str | None) -> set[str]:
    """Generate texts of these tasks; which kernels ran."""
    generator = running.engine.generator
    assert generator is not None
    del running.gpu.launched[:]
    asked = [
        running.engine.generate(name, [5 + i] * (21 if i == 1 else 3), sampling)
        for name in names
        for i, sampling in enumerate(SAMPLINGS)
    ]
    for _ in range(100):
        if not generator.step():
            break
    assert all(1 <= len(generation.result(0).tokens) <= 3 for generation in asked)
    assert generator.usage().pages == 0
    return set(running.gpu.launched)


@pytest.fixture(params=["plain", "int8", "fp8", "nf4"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Kinds of packed weights: one that needs no library, under the name of another, and those that are there."""
    monkeypatch.setattr(native, "takes", lambda arena: False)  # the arena in host memory has no bytes either
    if request.param == "plain":
        monkeypatch.setitem(PACKERS, "fp8", PlainWeight)
        return "fp8"
    pytest.importorskip("bitsandbytes" if request.param == "nf4" else "torchao")
    return str(request.param)


def is_split(running: Running) -> bool:
    """Whether the arena is in host memory, and what is computed with on the GPU."""
    engine = running.engine
    base, places = engine._targets.packed, {parameter.device for parameter in engine.backbone.parameters.values()}
    assert base is not None and base.matrices and base.copies
    places |= {tensor.device for _, tensor in base.tensors}
    return engine.backbone.arena.device.type == "cpu" and places == {GPU}


def test_rows_run_on_packed_weights(packed: str, tiny_tasks: TinyTasks) -> None:
    packages = [tiny_tasks.read(f"packed-{i}", head=head, seed=i) for i, head in enumerate((None, linear()))]
    with started(tiny_tasks.folder, packages, weights=packed, allow_quantised=True) as running:
        asked = [running.engine.classify(package.manifest.name, TEXTS) for package in packages]
        running.finish([*asked, running.engine.embed(None, TEXTS)])
        running.finish([running.engine.embed(None, TEXTS)])
        assert is_split(running) and running.engine.arena.check_all() and running.engine.arena.failures == 0
        handle = running.engine._residency.handle(packages[0].digest)
        assert handle is not None and handle.resident is not None and handle.resident.adapter is not None
        parts = handle.resident.adapter.parts.values()
        assert {tensor.device for part in parts for tensor in part.tensors} == {GPU}


def test_texts_are_generated_on_packed_weights(packed: str, speakers: TinyTasks) -> None:
    packages = [speakers.read(f"speaker{i}", "text-generation", seed=i) for i in range(2)]
    limits = GenerationLimits(cache_tokens=512, batch_tokens=16)
    options: dict[str, Any] = {"weights": packed, "allow_quantised": True}
    with started(speakers.folder, packages, generation=limits, **options) as running:
        assert "_sparse_lookup" in generate(running, "speaker0", "speaker1", None)
        assert "_sparse_lookup" in generate(running, "speaker1")
        assert not generate(running, None) and is_split(running), "the plain backbone adds nothing"
