"""Rows of one text that run once for several tasks: the answers are those of each task alone, on every family."""

from __future__ import annotations

import dataclasses
import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsehub.backbone import load_backbone
from sparsehub.delta import Delta
from sparsehub.engine import BatchReport, Budgets, Engine, Task
from sparsehub.engine.cost_model import CalibrationPoints, CostModel
from sparsehub.engine.many_tasks import tokens_once
from sparsehub.engine.mixing_check import checked_targets
from sparsehub.engine.one_token import OneToken
from sparsehub.engine.target_modules import TargetModules, sample_batch
from sparsehub.engine.trunk_check import with_layers
from sparsehub.engine.trunk_forward import TrunkPass
from sparsehub.engine.trunk_plan import plan_trunk
from sparsehub.errors import RequestError, SparsehubError, UnknownTaskError
from sparsehub.package.task_spec import HeadSpec
from sparsehub.patch import Patch, apply_patch, make_patch, restore_patch
from tests.engine.test_mixed_forward import mixable, random_delta, side_of
from tests.support.tiny_tasks import flat

pytestmark = pytest.mark.soak
FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2"]
TEXTS = ["the quick brown fox", "a good film with a great cast and a bad ending", "who wrote the book", "berlin"]
Loaded = tuple[Any, TargetModules]


@pytest.fixture(scope="module")
def load(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Loaded]:
    @functools.cache
    def loaded(family: str) -> Loaded:
        backbone = load_backbone(str(tiny_checkpoint(family)))
        return backbone, with_layers(backbone, checked_targets(backbone))

    return loaded


def upper(backbone: Any, targets: TargetModules, first: int, seed: int) -> Patch:
    """A random change of everything that is first used in this layer or after it."""
    firsts = {slot: targets.first_changed([t.index for t, _ in uses]) for slot, uses in targets.uses.items()}
    names = [name for name in mixable(backbone, targets) if firsts[backbone.arena.slots[name]] >= first]
    return make_patch(backbone, random_delta(backbone, names, seed, 0.1))


@torch.inference_mode()
def alone(backbone: Any, patch: Patch | None, batch: Any) -> torch.Tensor:
    if patch is not None:
        apply_patch(backbone.arena, patch)
    states: torch.Tensor = backbone.module(**batch).last_hidden_state
    if patch is not None:
        restore_patch(backbone.arena, patch)
    return states


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_row_gives_what_its_tasks_weights_give(
    load: Callable[[str], Loaded], family: str, data: st.DataObject
) -> None:
    """Ragged lengths; tasks that change everything, upper layers, the last one, nothing; texts that repeat."""
    backbone, targets = load(family)
    assert targets.layers is not None, targets.why_no_trunk
    layers = len(targets.layers.modules)
    firsts = data.draw(st.lists(st.integers(-1, layers - 1), max_size=4), label="first changed layers")
    patches = [None, *(upper(backbone, targets, first, seed) for seed, first in enumerate(firsts))]
    adapters = [side_of(targets, backbone, patch) for patch in patches if patch is not None]
    rows, length = data.draw(st.integers(1, 4), label="texts"), data.draw(st.integers(2, 9), label="tokens")
    batch = sample_batch(backbone, rows, length, seed=data.draw(st.integers(0, 9)))
    for row in range(rows):
        batch["attention_mask"][row, data.draw(st.integers(1, length)) :] = 0
    pairs = st.tuples(st.integers(0, rows - 1), st.integers(0, len(adapters)))
    wanted = data.draw(st.lists(pairs, min_size=1, max_size=12), label="texts and tasks")
    plan = plan_trunk([(t, t, k, adapters[k - 1].first if k else layers) for t, k in wanted], layers)
    used = [adapters[int(task) - 1] for task in plan.slots]
    index = torch.tensor([plan.texts[text] for text in plan.stages[0].texts])
    reads = None
    if data.draw(st.booleans(), label="one token is read"):
        own = batch["attention_mask"][[plan.texts[text] for text in plan.stages[-1].texts]].sum(1)
        chosen = torch.tensor([data.draw(st.integers(0, int(most) - 1)) for most in own])
        reads = OneToken(targets.layers, chosen)
    together = data.draw(st.sampled_from([1, 2 * length, 1 << 20]), label="tokens that go through a layer together")
    with torch.inference_mode(), TrunkPass(targets, plan, used, reads, together=together).on_model():
        found = backbone.module(**{name: tensor[index] for name, tensor in batch.items()}).last_hidden_state
    right = {task: alone(backbone, patches[task], batch) for task in {task for _, task in wanted}}
    for place, (text, task) in zip(plan.places, wanted, strict=True):
        real = batch["attention_mask"][text].bool()
        expected = right[task][text][real]
        if reads is not None:
            expected = expected[chosen[place]].expand_as(expected)
        assert (found[place][real] - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert len(found) == len({(text, task if task and firsts[task - 1] < layers else 0) for text, task in wanted})


HEADS = [None, HeadSpec("linear", "mean", False, "joint"), HeadSpec("linear", "first", True, "joint")]


def tasks_for_trunks(tiny_tasks: Any) -> dict[str, Any]:
    """Packages whose deltas are whole, of the last layer alone, or absent, with heads of several kinds."""
    packages = {}
    for seed, (kind, head, reach) in enumerate(
        [("text-classification", head, reach) for head in HEADS for reach in ("whole", "last", "none")]
        + [("regression", None, "last"), ("token-classification", None, "none"), ("text-classification", None, "last")]
    ):
        name = f"trunk{seed}"
        package = tiny_tasks.read(name, kind, labels=2 + seed % 3, seed=seed, head=head)
        if reach != "whole":
            parts = package.delta.parameters if reach == "last" else {}
            kept = {name: part for name, part in parts.items() if ".layer.1." in name}
            package = dataclasses.replace(package, delta=Delta(kept, "add", "float32"))
        packages[name] = package
    return packages


@pytest.fixture(scope="module")
def engines(tiny_tasks: Any) -> Iterator[tuple[dict[str, Any], Engine, Engine, list[BatchReport]]]:
    """The tasks, one engine that runs each request alone, one that runs trunks, and the reports of the latter."""
    packages, reports = tasks_for_trunks(tiny_tasks), []
    alone = Engine(load_backbone(str(tiny_tasks.folder)), mode="swap")
    shared = Engine(
        load_backbone(str(tiny_tasks.folder)), observer=SimpleNamespace(observe=reports.append), mode="trunk"
    )
    for engine in (alone, shared):
        for package in packages.values():
            engine.add(package)
    # a machine on which a pass costs the same whatever is in it, so that as much as fits goes into one
    once = [(1, 1.0), (10_000, 1.0001)]
    shared._planner.__dict__["costs"] = CostModel(CalibrationPoints(once, [(1, 1.0), (2, 1.0)], [(1, 0.0, 0.0)]))
    yield packages, alone, shared, reports
    for engine in (alone, shared):
        engine.stop()


def run_all(engine: Engine) -> None:
    end = time.monotonic() + 60
    while engine.waiting and time.monotonic() < end:
        engine.step(0.05)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_answers_are_those_of_each_task_alone(engines: Any, data: st.DataObject) -> None:
    """Repeated tasks and texts, compositions, embeddings, the plain backbone, heads of every kind."""
    packages, alone, shared, reports = engines
    names = [*packages, "trunk1+trunk4*0.5", "trunk2+trunk1", None]
    requests = data.draw(
        st.lists(
            st.tuples(st.sampled_from(names), st.booleans(), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3)),
            min_size=1,
            max_size=8,
        )
    )
    answers = []
    for engine in (alone, shared):
        reports.clear()
        for name, _, _ in requests:
            if name is not None:
                engine.load(name)
        pending = [
            engine.embed(name, texts) if embed or name is None else engine.classify(name, texts)
            for name, embed, texts in requests
        ]
        run_all(engine)
        answers.append([[numbers(answer) for answer in its.results(0)] for its in pending])
    for expected, found in zip(*answers, strict=True):
        for a, b in zip(expected, found, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    assert not any(share.failed for report in reports for share in report.shares)


def numbers(answer: Any) -> list[float]:
    return list(answer) if isinstance(answer, list) else flat(answer)


def test_a_batch_of_one_text_runs_once_and_says_so(engines: Any) -> None:
    packages, _, shared, reports = engines
    reports.clear()
    before = shared.backbone.arena.digest()
    pending = {name: shared.classify(name, [TEXTS[0]]) for name in packages}
    run_all(shared)
    assert [report.mode for report in reports] == ["trunk"] and reports[0].switches == 0
    assert {share.name for share in reports[0].shares} == set(packages)
    assert {p.task.digest for p in pending.values() if p.task} == {p.digest for p in packages.values()}
    assert reports[0].predictions.keys() == {"grouped-swap", "mixed", "trunk"}
    assert shared.backbone.arena.digest() == before


def test_classify_many_answers_as_classify_and_each_task_fails_alone(engines: Any, tiny_tasks: Any) -> None:
    packages, _, shared, reports = engines
    reports.clear()
    names = [*packages, "trunk1+trunk4*0.5", "nobody"]
    shared.load(names[-2])
    found = shared.classify_many(names, TEXTS[:2], timeout=30)
    run_all(shared)
    assert [report.mode for report in reports] == ["trunk"]
    assert isinstance(found[-1], UnknownTaskError)
    for name, its in zip(names[:-1], found, strict=False):
        assert not isinstance(its, SparsehubError)
        expected = shared.classify(name, TEXTS[:2])
        run_all(shared)
        assert its.task == expected.task and its.tokens == expected.tokens
        for a, b in zip(its.results(0), expected.results(0), strict=True):
            assert numbers(a) == pytest.approx(numbers(b), abs=1e-5)
    assert all(isinstance(its, RequestError) for its in shared.classify_many(["trunk0", "trunk1"], [""]))


def test_what_reads_alike_is_tokenised_once(engines: Any) -> None:
    _, _, shared, _ = engines
    known: dict[Any, Any] = {}
    prepared = [shared.prepare(name, TEXTS, known=known) for name in ("trunk0", "trunk1", "trunk2", "trunk10")]
    assert prepared[0].rows is prepared[1].rows is prepared[2].rows is not prepared[3].rows  # which reads words
    assert len(known) == 2
    # the first changes everything; the others share
    assert tokens_once(prepared) == 2 * prepared[0].tokens + prepared[3].tokens
    for its in prepared:
        its.release()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_cut_behind_its_attention(load: Callable[[str], Loaded], family: str) -> None:
    """Its projections of the states to queries, keys and values run for all tokens, what follows for one."""
    backbone, targets = load(family)
    assert targets.layers is not None and targets.layers.token_from is not None
    last = set(targets.layers.modules[-1].modules())
    lengths: dict[str, int] = {}
    hooks = [
        target.module.register_forward_hook(
            lambda _, given, __, name=target.name: lengths.update({name: given[0].shape[1]})
        )
        for target in targets.targets
        if target.module in last and target.kind in ("Linear", "Conv1D")
    ]
    batch = sample_batch(backbone, 2, 5)
    with torch.inference_mode(), OneToken(targets.layers, torch.tensor([0, 3])).on_model():
        backbone.module(**batch)
    for hook in hooks:
        hook.remove()
    assert len([length for length in lengths.values() if length == 1]) >= 2
    whole = {name for name, length in lengths.items() if length == 5}
    assert whole and all(any(word in name.lower() for word in ("q", "k", "v", "attn")) for name in whole)
    assert not any("forward" in module.__dict__ for module in backbone.module.modules())


@pytest.mark.parametrize("mode", ["swap", "mixed", "trunk"])
@pytest.mark.parametrize("pooling", ["first", "last"])
def test_heads_of_one_token_answer_the_same_in_every_way(
    tiny_tasks: Any, tiny_checkpoint: Callable[[str], Path], mode: str, pooling: str
) -> None:
    """Their batches are cut; those of the reference, which a mean-pooled head goes along with, are not."""
    head = HeadSpec("linear", pooling, False, "joint")
    engine = Engine(load_backbone(str(tiny_tasks.folder)), mode=mode)
    for seed in range(3):
        engine.add(tiny_tasks.read(f"cut-{pooling}{seed}", seed=40 + seed, head=head))
    engine.add(tiny_tasks.read("cut-mean", seed=44, head=HeadSpec("linear", "mean", False, "joint")))
    names = [f"cut-{pooling}{seed}" for seed in range(3)]
    cut = [engine.classify(name, TEXTS) for name in names]
    run_all(engine)
    engine._targets = engine._loop._runner._targets = dataclasses.replace(
        engine._targets, layers=engine._targets.layers.cut_at(None)
    )
    whole = [engine.classify(name, TEXTS) for name in [*names, "cut-mean"]]
    run_all(engine)
    for found, expected in zip(cut, whole, strict=False):
        for a, b in zip(found.results(0), expected.results(0), strict=True):
            assert numbers(a) == pytest.approx(numbers(b), abs=1e-5)
    engine.stop()


def test_many_threads_ask_many_tasks_while_tasks_come_and_go(tiny_tasks: Any) -> None:
    """Loads, evictions and cancellations: every answer is of its digest, nothing is lost, the arena is exact."""
    packages = tasks_for_trunks(tiny_tasks)
    engine = Engine(load_backbone(str(tiny_tasks.folder)), mode="trunk", budgets=Budgets(device_bytes=60_000))
    for package in packages.values():
        manifest = package.manifest
        engine.register(Task(manifest.name, manifest.version, package.digest, lambda package=package: package))
    before, right, lock = engine.backbone.arena.digest(), dict[tuple[str, str], list[float]](), threading.Lock()
    wrong: list[Any] = []

    def ask(seed: int) -> None:
        pick = random.Random(seed)
        for _ in range(12):
            names = pick.sample(list(packages), pick.randint(1, 6))
            texts = pick.sample(TEXTS, pick.randint(1, 2))
            found = engine.classify_many(names, texts, timeout=60)
            for name, its in zip(names, found, strict=True):
                assert not isinstance(its, SparsehubError) and its.task is not None
                if pick.random() < 0.1:
                    its.futures[0].cancel()
                if its.task.digest != packages[name].digest:
                    wrong.append((name, its.task.digest))
                for text, future in zip(texts, its.futures, strict=True):
                    if future.cancelled():
                        continue
                    answer = numbers(future.result(60))
                    with lock:
                        expected = right.setdefault((name, text), answer)
                    if answer != pytest.approx(expected, abs=1e-5):
                        wrong.append((name, text))

    with engine, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(ask, seed) for seed in range(8)]:
            done.result(120)
        assert engine.usage.evictions > 0 and engine.waiting == 0
    assert not wrong and engine.backbone.arena.digest() == before
