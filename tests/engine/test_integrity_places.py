"""Bits flip in everything that is computed with: each is found, nothing wrong is answered after that, and no repair
comes undone."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsehub.engine.arena_manager
from benchmarks.engine.bit_flips import BITS, NUMBERS, PLACES, flip, resident_of, setting
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, GenerationLimits, Sampling
from sparsehub.engine.checksum import checksum, sum_of_words
from sparsehub.engine.integrity import IntegrityChecker, TensorDigests
from sparsehub.engine.swap import Swap
from sparsehub.errors import EngineError, SparsehubError
from sparsehub.package import read_package
from sparsehub.patch import make_patch
from tests.support import SOAK

DTYPES = ("float32", "float16", "bfloat16")
KINDS = {"add": "three", "set": "three-set", "composed": "three+seven*0.5"}
TEXTS = ("the fox", "who wrote the book", "a bad ending")
Make = Callable[..., Engine]


@pytest.fixture
def make(tiny_tasks: Any, suite: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr("sparsehub.engine.integrity.BLOCK_BYTES", 4096)  # several blocks in a tiny arena
    made: list[Engine] = []

    def engine(dtype: str = "float32", mode: str = "swap", check_seconds: float = 0.0) -> Engine:
        backbone = load_backbone(str(tiny_tasks.folder), dtype=dtype)
        made.append(Engine(backbone, mode=mode, check_seconds=check_seconds))
        for name in ("three", "seven"):
            made[-1].add(read_package(suite[name]))
        made[-1].add(setting(read_package(suite["three"]), backbone))
        return made[-1]

    yield engine
    for each in made:
        each.stop(drain=5)


def ask(engine: Engine, name: str, texts: tuple[str, ...] = TEXTS) -> list[Any]:
    """The answers of a task, by an engine that is not started."""
    pending = engine.classify(name, list(texts))
    deadline = time.monotonic() + 60
    while not all(future.done() for future in pending.futures) and time.monotonic() < deadline:
        engine.step(0.1)
    return pending.results(0)


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flipped_bit_is_found_wherever_it_is(
    make: Make, dtype: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    for mode in ("swap", "mixed"):
        engine = make(dtype, mode)
        names = list(KINDS.values())
        for name in (*names, "three+seven*0.5"):  # the composition is kept while something holds it
            ask(engine, name)
        held = engine.acquire(KINDS["composed"])
        before = {name: ask(engine, name) for name in names}
        base = _base_digest(engine)
        choices = random.Random(f"{dtype} {mode} {place}")
        for name in names:
            for bit in range(3):
                ask(engine, name)  # so that with swaps its patch is in the arena
                tensor, entry = PLACES[place](engine, resident_of(engine, name), choices)
                flip(tensor, entry, BITS[tensor.element_size()][bit])
                if place == "patched position" and mode == "mixed":  # nothing is applied: it is the base itself
                    assert engine.arena.swap.current is None
                failures = engine.arena.failures
                assert engine.arena.check_all(), "it is mended"
                assert engine.arena.failures > failures, (mode, name, bit)
                assert {n: ask(engine, n) for n in names} == before, (mode, name, bit)
                assert engine.arena.check_all() and engine.arena.failures == failures + 1, "and stays mended"
        assert _base_digest(engine) == base
        held.release()


def _base_digest(engine: Engine) -> str:
    engine.arena.release_active()
    return engine.backbone.arena.digest()


@pytest.mark.parametrize("mode", ["swap", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_turn_sees_a_flipped_bit_of_every_place_and_kind_and_nothing_else(
    make: Make, dtype: str, mode: str
) -> None:
    """The looks by themselves: nobody mends, no switch comes between, no clock runs."""
    engine, choices = make(dtype, mode), random.Random(f"{dtype} {mode}")
    ask(engine, KINDS["composed"])
    held = engine.acquire(KINDS["composed"])
    for name in KINDS.values():
        ask(engine, name)  # with swaps its patch is in the arena then
        applied = engine.arena.swap.current
        assert (applied is resident_of(engine, name).patch) == (mode == "swap")
        for place, find in PLACES.items():
            for bit in range(3):
                resident = resident_of(engine, name)
                tensor, entry = find(engine, resident, choices)
                number = BITS[tensor.element_size()][bit]
                flip(tensor, entry, number)
                with engine.arena.lock:
                    damage = engine.arena._round.look(math.inf)[1]
                assert damage is not None, (name, place, bit)
                of_task = damage.task is not None and damage.task.resident is resident
                is_backbone = place in ("base block", "patched position", "norm copy")
                assert damage.task is None if is_backbone else of_task or applied is not None, (name, place, bit)
                flip(tensor, entry, number)
                with engine.arena.lock:
                    assert engine.arena._round.look(math.inf)[1] is None, (name, place, bit)
    assert engine.arena.failures == 0
    held.release()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_switch_puts_a_patched_position_right_whichever_bit_of_it_flips(make: Make, dtype: str) -> None:
    """So damage there may be gone before its turn comes: then nothing is left to find."""
    engine, choices = make(dtype), random.Random(dtype)
    base = _base_digest(engine)
    for name in ("three", "three-set"):
        for bit in range(8 * getattr(torch, dtype).itemsize):
            ask(engine, name, TEXTS[:1])
            tensor, entry = PLACES["patched position"](engine, resident_of(engine, name), choices)
            flip(tensor, entry, bit)
            assert _base_digest(engine) == base, (name, bit)
    assert engine.arena.check_all() and engine.arena.failures == 0


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("place", list(NUMBERS))
def test_a_flipped_bit_of_a_position_an_address_or_a_column_is_found(make: Make, place: str, active: bool) -> None:
    choices = random.Random(place)
    engine = make(mode="mixed" if place in ("address table", "columns") else "swap")
    before = {name: ask(engine, name) for name in ("three", "seven")}
    for _ in range(6):
        ask(engine, "three" if active else "seven")
        tensor, entry = NUMBERS[place](engine, resident_of(engine, "three"), choices)
        flip(tensor, entry, choices.randrange(8 * tensor.element_size()))
        failures = engine.arena.failures
        assert engine.arena.check_all() and engine.arena.failures == failures + 1
        assert {name: ask(engine, name) for name in ("three", "seven")} == before
        assert engine.arena.check_all() and engine.arena.failures == failures + 1


def test_a_wild_position_is_not_written_to_and_the_engine_mends_itself(make: Make) -> None:
    engine = make(check_seconds=1e9)
    before = ask(engine, "three")
    ask(engine, "seven")
    flip(resident_of(engine, "three").patch.segments[0].positions, 3, 30)
    pending = engine.classify("three", ["the fox"])
    engine.step()
    with pytest.raises(EngineError, match="damaged"):
        pending.results(0)
    assert ask(engine, "three") == before and engine.arena.repairs == 1
    flip(resident_of(engine, "three").patch.segments[0].positions, 3, 30)  # now it is applied: it cannot be taken out
    pending = engine.classify("seven", ["the fox"])
    engine.step()
    with pytest.raises(SparsehubError):
        pending.results(0)
    engine.step()
    assert engine.healthy and ask(engine, "three") == before


def test_a_wild_address_is_not_followed(make: Make) -> None:
    engine = make(mode="mixed")
    before = ask(engine, "three")
    flip(resident_of(engine, "three").adapter.addresses, 7, 40)  # type: ignore[union-attr]
    assert ask(engine, "three")[0].label == before[0].label, "by swap"
    assert engine.arena.check_all() and engine.arena.failures == 1
    assert ask(engine, "three") == before


def test_a_task_that_is_made_ready_on_damaged_weights_is_made_of_right_ones(
    make: Make, suite: Mapping[str, Path]
) -> None:
    """The damage would come back whenever the task is taken out of the arena."""
    engine = make()
    before, base = ask(engine, "seven"), _base_digest(engine)
    package = read_package(suite["seven"])
    engine.remove("seven")
    resident_places = make_patch(engine.backbone, package.delta).segments[0].positions.tolist()
    (buffer,) = engine.backbone.arena.buffers.values()
    flip(buffer, resident_places[5], 29)
    engine.add(package)
    assert engine.arena.failures == engine.arena.repairs == 1
    assert ask(engine, "seven") == before and _base_digest(engine) == base
    assert engine.arena.check_all() and engine.arena.failures == 1


def test_what_was_made_of_damaged_weights_is_made_again_when_they_are_mended(make: Make) -> None:
    engine = make()
    before, base = ask(engine, "seven"), _base_digest(engine)
    resident = resident_of(engine, "seven")
    flip(resident.patch.segments[0].base, 4, 30)
    object.__setattr__(resident, "digests", TensorDigests(()))  # its digests would say nothing
    ask(engine, "seven"), ask(engine, "three"), _base_digest(engine)  # the damage is written into the arena
    assert engine.arena.check_all()
    assert ask(engine, "seven") == before and _base_digest(engine) == base
    assert engine.arena.check_all() and engine.arena.failures == 1


@pytest.mark.slow
def test_no_repair_comes_undone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 rounds: damage somewhere, tasks in and out, a look at everything. `make soak` reads the checkpoint in every
    round; here its values are kept aside."""
    engine = make(mode="auto")
    _ = engine.costs
    arena = engine.backbone.arena
    kept = {dtype: buffer.clone() for dtype, buffer in arena.buffers.items()}
    if not SOAK:
        monkeypatch.setattr(
            sparsehub.engine.arena_manager, "reload", lambda _: [b.copy_(kept[d]) for d, b in arena.buffers.items()]
        )
    names, choices = ("three", "seven", "three-set"), random.Random(5)
    before, base = {name: ask(engine, name, TEXTS[:1]) for name in names}, _base_digest(engine)
    for number in range(1000):
        engine.mode = choices.choice(("swap", "mixed"))
        name, place = choices.choice(names), choices.choice(list(PLACES))
        ask(engine, choices.choice(names), TEXTS[:1])
        tensor, entry = PLACES[place](engine, resident_of(engine, name), choices)
        flip(tensor, entry, choices.randrange(8 * tensor.element_size()))
        if choices.random() < 0.5:  # it is used, taken out, put in before anybody looks
            for other in choices.sample(names, 2):
                engine.classify(other, [TEXTS[0]])
                while engine.step():
                    pass
        assert engine.arena.check_all()
        if number % 10 == 0:
            engine.mode = "swap"
            assert _base_digest(engine) == base, number
            answers = {name: ask(engine, name, TEXTS[:1]) for name in names}
            assert all(_alike(answers[name], before[name]) for name in names), number
    failures = engine.arena.failures
    assert engine.arena.check_all() and engine.arena.failures == failures
    assert failures > 900, "some damage goes when the task is taken out of the arena, before anybody looks"
    assert _base_digest(engine) == base


def _alike(found: list[Any], wanted: list[Any]) -> bool:
    return all(a.scores == pytest.approx(b.scores, abs=1e-5) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hundred_thousand_switches_are_exact(dtype: str, make: Make) -> None:
    engine = make(dtype)
    swap, base = Swap(engine.backbone.arena), engine.backbone.arena.digest()
    patches = [resident_of(engine, name).patch for name in ("three", "seven", "three-set")]
    seen: dict[int, str] = {}
    for number in range(100_000 if SOAK else 20_000):
        swap.to(patches[number * 7 % 3] if number % 5 else None)
        if number % 1000 == 0:
            place = -1 if swap.current is None else number * 7 % 3
            assert seen.setdefault(place, engine.backbone.arena.digest()) == engine.backbone.arena.digest()
    swap.to(None)
    assert engine.backbone.arena.digest() == base


@pytest.mark.parametrize("mode", ["swap", "mixed"])
def test_under_load_damage_is_found_within_the_stated_time(make: Make, mode: str) -> None:
    engine = make(mode=mode, check_seconds=0.02)
    names, choices = ("three", "seven"), random.Random(3)
    before = {name: ask(engine, name) for name in names}
    over, wrong = threading.Event(), []

    def client(name: str) -> None:
        while not over.is_set():
            try:
                answers = engine.classify(name, list(TEXTS)).results(60)
            except SparsehubError:
                continue  # refused
            if not _alike(answers, before[name]):
                wrong.append(time.monotonic())

    engine.start()
    clients = [threading.Thread(target=client, args=(name,)) for name in names]
    for each in clients:
        each.start()
    try:
        for place in ("base block", "saved base value", "adapter weights", "head"):
            tensor, entry = PLACES[place](engine, resident_of(engine, "three"), choices)
            failures, flipped = engine.arena.failures, time.monotonic()
            flip(tensor, entry, 29)
            while engine.arena.failures == failures and time.monotonic() - flipped < 30:
                time.sleep(0.005)
            assert engine.arena.failures > failures, place
            assert time.monotonic() - flipped < engine.arena.bound_seconds + 10, "10 s for a busy machine"
            resident_of(engine, "three")
            time.sleep(0.3)
            wrong.clear()
            time.sleep(0.2)
            assert wrong == [], place
    finally:
        over.set()
        for each in clients:
            each.join(60)
    assert engine.healthy


def test_a_text_that_runs_when_damage_is_found_is_refused(speakers: Any) -> None:
    engine = Engine(
        load_backbone(str(speakers.folder)), check_seconds=0, generation=GenerationLimits(cache_tokens=2048)
    )
    assert engine.generator is not None
    engine.add(read_package(speakers.write("one", "text-generation", seed=40, scale=0.3)))

    def whole(generation: Any) -> Any:
        for _ in range(200):
            if generation.future.done():
                break
            engine.generator.step()  # type: ignore[union-attr]
        return generation.result(0).tokens

    before = whole(engine.generate("one", "SAILOR:\n", Sampling(max_tokens=12)))
    text = engine.generate("one", "SAILOR:\n", Sampling(max_tokens=12))
    for _ in range(4):
        engine.generator.step()
    (buffer,) = engine.backbone.arena.buffers.values()
    flip(buffer, 9, 29)
    assert engine.arena.check_all()
    with pytest.raises(EngineError, match="weights in memory were damaged while the text was made"):
        whole(text)
    assert whole(engine.generate("one", "SAILOR:\n", Sampling(max_tokens=12))) == before
    engine.stop(drain=0)


def test_a_package_in_host_memory_is_proved_before_it_is_used(tiny_tasks: Any) -> None:
    from sparsehub.engine import Budgets, Task
    from sparsehub.package import read_manifest

    folder, reads = tiny_tasks.write("kept", seed=12), []

    def load() -> Any:
        reads.append(1)
        return read_package(folder)

    budgets = Budgets(host_bytes=1 << 30)
    engine = Engine(load_backbone(str(tiny_tasks.folder)), mode="swap", check_seconds=0, budgets=budgets)
    digest = read_manifest(folder).digest
    engine.register(Task("kept", "1.0.0", digest, load))
    before = ask(engine, "kept")
    values = next(iter(engine._residency._hosts._tasks[digest].layout.parts.values()))[1]
    flip(values, 2, 29)
    engine.arena.check_all()
    assert ask(engine, "kept") == before and len(reads) == 2
    engine.stop()


# the digests themselves

SHAPES = st.tuples(st.integers(1, 700), st.sampled_from(["float32", "float16", "bfloat16", "int32", "uint8", "int64"]))


@given(SHAPES, st.integers(0, 2**31 - 1), st.data())
@settings(max_examples=60)
def test_one_flipped_bit_always_changes_a_checksum(shape: tuple[int, str], seed: int, data: st.DataObject) -> None:
    count, dtype = shape
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 256, (count * 8,), generator=generator, dtype=torch.uint8).view(getattr(torch, dtype))
    tensor = tensor[: data.draw(st.integers(1, len(tensor)))]
    before = checksum([tensor]), int(sum_of_words([tensor]))
    entry = data.draw(st.integers(0, len(tensor) - 1))
    bit = data.draw(st.integers(0, 8 * tensor.element_size() - 1))
    flip(tensor, entry, bit)
    assert checksum([tensor]) != before[0] and int(sum_of_words([tensor])) != before[1]
    flip(tensor, entry, bit)
    assert (checksum([tensor]), int(sum_of_words([tensor]))) == before


@given(st.lists(st.tuples(st.integers(0, 499), st.integers(0, 31)), min_size=2, max_size=9, unique=True))
def test_several_flipped_bits_change_a_checksum(flips: list[tuple[int, int]]) -> None:
    tensor = torch.randn(500, generator=torch.Generator().manual_seed(1))
    before = checksum([tensor]), int(sum_of_words([tensor]))
    for entry, bit in flips:
        flip(tensor, entry, bit)
    assert checksum([tensor]) != before[0] and int(sum_of_words([tensor])) != before[1]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3000)), max_size=12), st.data())
@settings(max_examples=40)
def test_digests_of_tensors_of_any_sizes_find_the_damaged_one(
    sizes: list[tuple[str, int]], data: st.DataObject
) -> None:
    tensors = [(name, torch.zeros(size)) for name, size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsehub.engine.integrity.BLOCK_BYTES", 4096)
        digests = TensorDigests(tensors)
    assert digests.first_damaged() is None
    filled = [(name, tensor) for name, tensor in tensors if len(tensor)]
    if filled:
        name, tensor = data.draw(st.sampled_from(filled))
        flip(tensor, data.draw(st.integers(0, len(tensor) - 1)), 31)  # -0
        assert digests.first_damaged() == name
        assert sum(digests.damaged(piece) is not None for piece in range(len(digests))) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_arena_is_judged_by_what_the_patch_makes_of_it(dtype: str, make: Make) -> None:
    engine = make(dtype)
    checker, swap = IntegrityChecker(engine.backbone.arena), Swap(engine.backbone.arena)
    for name in ("three", "three-set"):
        patch = resident_of(engine, name).patch
        swap.to(patch)
        assert checker.check_all(patch) and not checker.check_all(None)
        swap.to(None)
        assert checker.check_all(None) and not checker.check_all(patch)
