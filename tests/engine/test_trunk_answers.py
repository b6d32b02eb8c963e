"""One text, many tasks, for every family: answers are those of each task alone, with and without kept states."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsehub.backbone import load_backbone
from sparsehub.delta import Delta
from sparsehub.engine import Budgets, Engine
from sparsehub.engine.cost_model import CalibrationPoints, CostModel
from sparsehub.engine.target_modules import TargetModules
from sparsehub.errors import SparsehubError
from sparsehub.package import Package
from sparsehub.package.task_spec import HeadSpec
from tests.support import SOAK
from tests.support.tiny_tasks import TinyTasks, flat

pytestmark = pytest.mark.soak
FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2"]
TEXTS = ["a", "the quick brown fox", "a good film with a great cast and a bad ending", "who wrote the book", "berlin"]
FIRST, MEAN = HeadSpec("linear", "first", False, "joint"), HeadSpec("linear", "mean", True, "joint")
LAST, MAX = HeadSpec("linear", "last", False, "joint"), HeadSpec("linear", "max", False, "joint")
ALL, LAYERS, UPPER, NOTHING = -1, 0, 1, 2  # the first layer that a task changes, of two
TASKS: list[tuple[str, HeadSpec | None, int]] = [
    ("text-classification", None, ALL),
    ("text-classification", None, UPPER),
    ("token-classification", None, UPPER),
    ("regression", None, NOTHING),
    ("text-classification", MEAN, LAYERS),
    ("text-classification", MEAN, UPPER),
    ("text-classification", MEAN, NOTHING),
    ("text-classification", FIRST, UPPER),
    ("regression", LAST, UPPER),
    ("text-classification", MAX, UPPER),
]
COMPOSED = ["t4+t5*0.5", "t6+t5"]
ONCE = [(1, 1.0), (10_000, 1.0001)]  # a pass costs the same whatever is in it, so that as much as fits goes into one
COSTS = CalibrationPoints(ONCE, [(1, 1.0), (2, 1.0)], [(1, 0.0, 0.0)])
Asked = list[tuple[list[str], bool, list[str]]]  # tasks, whether vectors are wanted, texts


@dataclass(frozen=True)
class Family:
    """The tasks of one backbone, in an engine without any of what shares or cuts, and in two that share."""

    plain: Engine
    shared: Engine
    keeping: Engine  # states of a few texts
    base: str  # the digest of the base weights

    @functools.cache  # noqa: B019  lives as long as the module's tests
    def right(self, name: str | None, vectors: bool, text: str) -> Any:
        """What a task answers by itself, to compare with."""
        return pytest.approx(answers(self.plain, name, vectors, [text])[0], abs=1e-5, rel=1e-5)


def made(folder: Path, packages: list[Package], mode: str, state_bytes: int = 0) -> Engine:
    engine = Engine(load_backbone(str(folder)), mode=mode, budgets=Budgets(state_bytes=state_bytes))
    engine._planner.__dict__["costs"] = CostModel(COSTS)
    for package in packages:
        engine.add(package)
    for name in COMPOSED:
        engine.load(name)
    return engine


def packages_for(root: Path, folder: Path, targets: TargetModules, backbone: Any) -> list[Package]:
    """The packages of `TASKS`."""
    makes, packages = TinyTasks(folder, root), []
    first = {
        name: targets.first_changed([target.index for target, _ in targets.uses.get(slot, ())])
        for name, slot in backbone.arena.slots.items()
    }
    for number, (kind, head, depth) in enumerate(TASKS):
        package = makes.read(f"t{number}", kind, seed=number, head=head)
        parts = {name: part for name, part in package.delta.parameters.items() if depth <= first[name] < NOTHING}
        packages.append(dataclasses.replace(package, delta=Delta(parts, "add", "float32")))
    return packages


@pytest.fixture(scope="module")
def family_of(
    tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Family]]:
    engines: list[Engine] = []

    @functools.cache
    def family(name: str) -> Family:
        folder = tiny_checkpoint(name)
        probe = Engine(load_backbone(str(folder)))
        packages = packages_for(tmp_path_factory.mktemp(name), folder, probe._targets, probe.backbone)
        modes = (("swap", 0), ("trunk", 0), ("auto", 8_000))
        found = Family(*(made(folder, packages, *mode) for mode in modes), probe.backbone.arena.digest())
        whole = dataclasses.replace(found.plain._targets, layers=None)
        found.plain._loop._runner._targets = whole
        engines.extend([probe, found.plain, found.shared, found.keeping])
        return found

    yield family
    for engine in engines:
        engine.stop()


def run_all(engine: Engine) -> None:
    end = time.monotonic() + 60
    while engine.waiting and time.monotonic() < end:
        engine.step(0.05)


def answers(engine: Engine, name: str | None, vectors: bool, texts: list[str]) -> list[list[float]]:
    pending = engine.embed(name, texts) if vectors or name is None else engine.classify(name, texts)
    run_all(engine)
    return [numbers(answer) for answer in pending.results(0)]


def numbers(answer: Any) -> list[float]:
    return list(answer) if isinstance(answer, list) else flat(answer)


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([*(f"t{number}" for number in range(len(TASKS))), *COMPOSED]), min_size=1, max_size=8),
        st.booleans(),
        st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=400 if SOAK else 5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=REQUESTS)
def test_answers_are_those_of_each_task_alone(family_of: Callable[[str], Family], name: str, asked: Asked) -> None:
    """Ragged lengths, repeated tasks and texts, branches at several depths, compositions, heads and vectors."""
    family = family_of(name)
    for engine in (family.shared, family.keeping):
        pending = []
        for tasks, vectors, texts in asked:
            if vectors:
                pending += [(task, True, texts, engine.embed(task, texts)) for task in tasks]
            else:
                pending += [
                    (t, False, texts, p) for t, p in zip(tasks, engine.classify_many(tasks, texts), strict=True)
                ]
        run_all(engine)
        for task, vectors, texts, its in pending:
            assert not isinstance(its, SparsehubError)
            for text, answer in zip(texts, its.results(0), strict=True):
                assert numbers(answer) == family.right(task, vectors, text), (task, text)
        engine.arena.release_active()
        assert engine.backbone.arena.digest() == family.base


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_shares_layers_and_begins_in_the_middle(family_of: Callable[[str], Family], name: str) -> None:
    family = family_of(name)
    before = family.keeping.states.usage
    for task in ("t1", "t5", "t8"):
        found = answers(family.keeping, task, False, TEXTS[1:3])
        for text, numbers_of in zip(TEXTS[1:3], found, strict=True):
            assert numbers_of == family.right(task, False, text)
    usage = family.keeping.states.usage
    assert usage.hits - before.hits >= 4 and usage.damaged == 0 < usage.nbytes <= 8_000
