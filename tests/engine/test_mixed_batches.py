"""The engine with rows of many tasks in one batch: the same answers, and the choice of how to run them."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsehub.backbone import load_backbone
from sparsehub.delta.algebra import weighted_sum
from sparsehub.engine import BatchReport, Budgets, Engine, Task
from sparsehub.engine.cost_model import CalibrationPoints, CostModel
from sparsehub.errors import BackboneMismatchError, FormatError, RequestError, UnknownTaskError, UsageError
from sparsehub.package import Package, read_manifest, read_package
from tests.support.packages import write_bare_package

Close = Callable[..., bool]
ITEMS: Mapping[str, Any] = {
    "three": "the quick fox",
    "seven": "who wrote the book",
    "pair": ["a good film", "a bad ending of a long and slow story"],
    "rating": "lovely to watch",
    "choice": {"text": "the king", "choice1": "of spain", "choice2": "never sleeps in the city"},
    "words": "angela merkel met the king",
    "several": "an awful story",
}


def task_of(folder: Path, load: Callable[[], Package] | None = None) -> Task:
    manifest = read_manifest(folder)
    return Task(manifest.name, manifest.version, manifest.digest, load or (lambda: read_package(folder)))


@pytest.fixture
def make_engine(tiny_tasks: Any) -> Iterator[Callable[..., Engine]]:
    """make_engine(packages, **options): an engine that is not started; its tasks are read when they are wanted."""
    made: list[Engine] = []

    def make(packages: Sequence[Path], backbone: Path | None = None, **options: Any) -> Engine:
        engine = Engine(load_backbone(str(backbone or tiny_tasks.folder)), **options)
        for package in packages:
            engine.register(task_of(package))
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.stop(drain=5)


def run_all(engine: Engine) -> None:
    """Every row that waits, also those whose task is still loading."""
    end = time.monotonic() + 20
    while engine.waiting and time.monotonic() < end:
        engine.step(0.05)


@pytest.mark.parametrize("mode", ["auto", "mixed", "swap"])
def test_rows_of_every_kind_of_task_get_the_answers_of_the_materialised_models(
    make_engine: Callable[..., Engine], suite: Mapping[str, Path], tiny_tasks: Any, close: Close, mode: str
) -> None:
    reports: list[BatchReport] = []
    engine = make_engine(list(suite.values()), observer=SimpleNamespace(observe=reports.append), mode=mode)
    before = engine.backbone.arena.digest()
    for name in suite:
        engine.load(name)
    tickets = {name: engine.classify(name, [ITEMS[name]] * 2) for name in suite}
    vector, plain = engine.embed("three", ["the fox"]), engine.embed(None, ["the fox"])
    run_all(engine)
    for name, ticket in tickets.items():
        expected = tiny_tasks.reference(suite[name])(ITEMS[name])
        assert all(close(future.result(0), expected) for future in ticket.futures), name
    assert vector.futures[0].result(0) != pytest.approx(plain.futures[0].result(0), abs=1e-3)
    if mode == "mixed":
        assert [report.mode for report in reports] == ["mixed"]
        assert len(reports[0].shares) == len(suite) + 2 and engine.backbone.arena.digest() == before
    if mode == "swap":
        assert {report.mode for report in reports} <= {"swap", "grouped-swap"}
        assert all(len({share.name for share in report.shares}) == 1 for report in reports)
    engine.stop()
    assert engine.backbone.arena.digest() == before


def test_the_cheaper_way_is_taken(make_engine: Callable[..., Engine], suite: Mapping[str, Path]) -> None:
    """The same rows under two machines: on one a switch is dear, on the other the sparse part."""
    forward = [(1, 1e-3), (100, 2e-3)]
    dear, cheap = [(100, 1.0), (1000, 1.1)], [(100, 1e-6), (1000, 1e-6)]
    for switch, sparse, modes in ((dear, cheap, ["mixed"]), (cheap, dear, ["swap", "swap"])):
        reports: list[BatchReport] = []
        engine = make_engine([suite["three"], suite["seven"]], observer=SimpleNamespace(observe=reports.append))
        points = CalibrationPoints(forward, switch, [(tokens, 0.0, seconds) for tokens, seconds in sparse])
        engine._planner.__dict__["costs"] = CostModel(points)
        for name in ("three", "seven"):
            engine.load(name)
            engine.classify(name, ["the fox"])
        run_all(engine)
        assert [report.mode for report in reports] == modes
        assert reports[0].predictions[modes[0]] == min(reports[0].predictions.values())


def test_a_lone_row_goes_along_with_another_tasks_batch(
    make_engine: Callable[..., Engine], suite: Mapping[str, Path], tiny_tasks: Any, close: Close
) -> None:
    """Where mixing is dear: one after the other in one step, the first forward being hardly worth its row."""
    reports: list[BatchReport] = []
    engine = make_engine([suite["three"], suite["seven"]], observer=SimpleNamespace(observe=reports.append))
    points = CalibrationPoints([(1, 1.0), (100, 1.1)], [(100, 1e-6), (1000, 1e-6)], [(1, 0.0, 9.0), (100, 0.0, 9.0)])
    engine._planner.__dict__["costs"] = CostModel(points)
    for name in ("three", "seven"):
        engine.load(name)
    tickets = [engine.classify("three", ["the fox"]), engine.classify("seven", ["the fox"] * 8)]
    run_all(engine)
    assert [(report.mode, report.rows, report.switches) for report in reports] == [("grouped-swap", 9, 2)]
    for ticket, name in zip(tickets, ("three", "seven"), strict=True):
        assert all(close(f.result(0), tiny_tasks.reference(suite[name])("the fox")) for f in ticket.futures)


def test_the_measured_costs_learn_from_batches(make_engine: Callable[..., Engine], suite: Mapping[str, Path]) -> None:
    reports: list[BatchReport] = []
    observer = SimpleNamespace(observe=reports.append)
    engine = make_engine([suite["three"]], observer=observer, mode="swap")  # what is there is a plain forward
    for _ in range(5):
        engine.classify("three", ["the fox"])
        run_all(engine)
    assert len(reports) == 5 and all(r.predictions["swap"] > 0 and r.measured > 0 for r in reports)
    assert engine.costs.ratios["plain"] != 1.0


def test_a_task_that_cannot_be_mixed_runs_by_swap_and_says_why(
    make_engine: Callable[..., Engine], tiny_tasks: Any, tiny_checkpoint: Callable[[str], Path]
) -> None:
    """Every matrix of a DeBERTa is changed here, the table of relative positions too."""
    folder = tiny_checkpoint("deberta-v2")
    package = tiny_tasks.write("deberta", seed=51, backbone=folder)
    reports: list[BatchReport] = []
    engine = make_engine([package], backbone=folder, observer=SimpleNamespace(observe=reports.append), mode="mixed")
    engine.load("deberta")
    (status,) = engine.status()
    assert (status.why_swap is not None and "row by row" in status.why_swap) or "directly" in str(status.why_swap)
    tickets = [engine.classify("deberta", ["the fox"]), engine.embed(None, ["the fox"])]
    run_all(engine)
    assert {report.mode for report in reports} == {"swap"} and len(reports) == 2
    assert all(ticket.futures[0].result(0) for ticket in tickets)


def test_nothing_is_read_before_somebody_asks(make_engine: Callable[..., Engine], suite: Mapping[str, Path]) -> None:
    engine = make_engine(list(suite.values()))
    assert {status.where for status in engine.status()} == {"disk"}
    assert engine.usage.device_bytes == 0
    engine.classify("three", ["the fox"])
    run_all(engine)
    assert {s.task.name: s.where for s in engine.status()} == {**dict.fromkeys(suite, "disk"), "three": "device"}


def test_rows_of_a_task_that_loads_do_not_hold_up_the_others(
    make_engine: Callable[..., Engine], suite: Mapping[str, Path], tiny_tasks: Any, close: Close
) -> None:
    gate, slow = threading.Event(), suite["seven"]
    engine = make_engine([suite["three"]])

    def load() -> Package:
        gate.wait(20)
        return read_package(slow)

    engine.register(task_of(slow, load))
    engine.load("three")
    waiting: list[Any] = []
    asker = threading.Thread(target=lambda: waiting.append(engine.classify("seven", ["the fox"])))
    asker.start()
    ticket = engine.classify("three", ["the fox"])
    engine.step()
    assert close(ticket.futures[0].result(0), tiny_tasks.reference(suite["three"])("the fox"))
    gate.set()
    asker.join(20)
    run_all(engine)
    assert close(waiting[0].futures[0].result(0), tiny_tasks.reference(slow)("the fox"))


def test_an_evicted_task_comes_back_when_it_is_asked_for(
    make_engine: Callable[..., Engine], suite: Mapping[str, Path], tiny_tasks: Any, close: Close
) -> None:
    """Room for two of three; the rows of the third are queued while its weights are still on disk."""
    probe = make_engine([suite["three"]])
    probe.load("three")
    engine = make_engine(
        [suite[name] for name in ("three", "seven", "pair")], budgets=Budgets(2 * probe.usage.device_bytes + 4000)
    )
    before = engine.backbone.arena.digest()
    for _ in range(3):
        for name in ("three", "seven", "pair"):
            ticket = engine.classify(name, [ITEMS[name]])
            run_all(engine)
            assert close(ticket.futures[0].result(0), tiny_tasks.reference(suite[name])(ITEMS[name]))
    assert engine.usage.evictions >= 6
    engine.stop()
    assert engine.backbone.arena.digest() == before


def test_a_load_that_fails_fails_its_rows_and_nothing_else(
    make_engine: Callable[..., Engine], suite: Mapping[str, Path]
) -> None:
    engine = make_engine([suite["three"]])

    def damaged() -> Package:
        raise FormatError("a flipped byte")

    engine.register(task_of(suite["seven"], damaged))
    with pytest.raises(FormatError, match="flipped byte"):
        engine.classify("seven", ["the fox"])
    ticket = engine.classify("three", ["the fox"])
    run_all(engine)
    assert ticket.futures[0].result(0).label and engine.healthy


def test_rows_that_wait_for_a_load_that_fails_are_told(
    make_engine: Callable[..., Engine], suite: Mapping[str, Path], tiny_tasks: Any
) -> None:
    """The task was in memory once, so its rows are queued at once; by then its file is damaged."""
    outcomes: list[Any] = [read_package(suite["seven"]), FormatError("a flipped byte")]

    def load() -> Package:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    engine = make_engine([suite["three"]], budgets=Budgets(device_bytes=20_000))
    engine.register(task_of(suite["seven"], load))
    engine.load("seven")
    engine.load("three")
    assert {s.task.name: s.where for s in engine.status()} == {"three": "device", "seven": "disk"}
    ticket = engine.classify("seven", ["the fox", "a dog"])
    run_all(engine)
    for future in ticket.futures:
        with pytest.raises(FormatError, match="flipped byte"):
            future.result(20)


def test_a_task_for_another_backbone_is_refused_when_it_is_loaded(
    make_engine: Callable[..., Engine], tiny_tasks: Any, tiny_checkpoint: Callable[[str], Path]
) -> None:
    stranger = tiny_tasks.write("stranger", seed=61, backbone=tiny_checkpoint("roberta"))
    engine = make_engine([stranger])
    with pytest.raises(BackboneMismatchError):
        engine.load("stranger")


def test_a_reload_under_the_same_version_is_another_digest_for_new_rows_only(
    make_engine: Callable[..., Engine], suite: Mapping[str, Path], tiny_tasks: Any, close: Close
) -> None:
    other = tiny_tasks.write("three", labels=3, seed=99)
    engine = make_engine([suite["three"]])
    old = engine.classify("three", ["the fox"])
    with pytest.raises(UsageError, match="with other contents"):
        engine.register(task_of(other))
    engine.register(task_of(other), replace=True)
    new = engine.classify("three", ["the fox"])
    run_all(engine)
    for ticket, package in ((old, suite["three"]), (new, other)):
        assert ticket.task is not None and ticket.task.digest == read_manifest(package).digest
        assert close(ticket.futures[0].result(0), tiny_tasks.reference(package)("the fox"))
    assert [status.task.digest for status in engine.status()] == [read_manifest(other).digest]
    assert engine.usage.device_tasks == 1


@pytest.mark.parametrize("mode", ["swap", "mixed"])
def test_a_request_composes_tasks(
    make_engine: Callable[..., Engine], suite: Mapping[str, Path], tiny_tasks: Any, close: Close, mode: str
) -> None:
    """The sum of two deltas with the head of the first, against the same sum written as a package."""
    first, second = read_package(suite["three"]), read_package(suite["seven"])
    delta = weighted_sum([first.delta, second.delta], [1.0, -0.5])
    record = dataclasses.replace(
        first.manifest.delta,
        nnz=delta.nnz,
        density=delta.nnz / first.manifest.backbone.parameters,
        value_dtype="float32",
        parameters={
            name: dataclasses.replace(first.manifest.delta.parameters[name], nnz=len(part.indices))
            for name, part in delta.parameters.items()
        },
    )
    draft = dataclasses.replace(first.manifest, name="sum", delta=record, files={})
    written = suite["three"].parent / f"sum-{mode}"
    write_bare_package(written, draft, delta, first.head, "# sum", {})
    engine = make_engine([suite["three"], suite["seven"]], mode=mode)
    ticket, again = (engine.classify("three+seven*-0.5", ["the fox"]) for _ in range(2))
    plain = engine.classify("three", ["the fox"])
    run_all(engine)
    expected = tiny_tasks.reference(written)("the fox")
    assert close(ticket.futures[0].result(0), expected) and close(again.futures[0].result(0), expected)
    assert not close(plain.futures[0].result(0), expected)
    assert ticket.task is not None and ticket.task.name == "three+seven*-0.5"
    assert ticket.task.digest not in (first.digest, second.digest)
    assert engine.usage.loads == 2, "the composition was built once"
    assert {status.task.name for status in engine.status()} == {"three", "seven"}


def test_a_composition_follows_a_reload_of_its_parts(
    make_engine: Callable[..., Engine], suite: Mapping[str, Path], tiny_tasks: Any
) -> None:
    engine = make_engine([suite["three"], suite["seven"]])
    before = engine.info("three+seven").digest
    engine.register(task_of(tiny_tasks.write("three", labels=3, seed=99)), replace=True)
    assert engine.info("three+seven").digest != before


def test_only_a_few_compositions_are_kept(make_engine: Callable[..., Engine], suite: Mapping[str, Path]) -> None:
    engine = make_engine([suite["three"], suite["seven"]], budgets=Budgets(composed=2))
    for weight in range(6):
        engine.classify(f"three+seven*{weight}", ["the fox"])
        run_all(engine)
    engine.arena.release_active()
    assert engine.usage.device_tasks == 2


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("three+nobody", UnknownTaskError, "unknown task 'nobody'"),
        ("three+", RequestError, "not a composition"),
        ("three*x", RequestError, "not a composition"),
        ("three*nan+seven", RequestError, "not a composition"),
        ("three*1e999", RequestError, "not a composition"),
        ("+".join(["three"] * 9), RequestError, "too many tasks"),
    ],
)
def test_a_composition_that_makes_no_sense_is_refused(
    make_engine: Callable[..., Engine],
    suite: Mapping[str, Path],
    reference: str,
    error: type[Exception],
    message: str,
) -> None:
    engine = make_engine([suite["three"], suite["seven"]])
    with pytest.raises(error, match=message):
        engine.classify(reference, ["the fox"])


def test_an_unknown_way_of_running_is_refused(tiny_tasks: Any) -> None:
    with pytest.raises(UsageError, match="unknown way of running"):
        Engine(load_backbone(str(tiny_tasks.folder)), mode="magic")
