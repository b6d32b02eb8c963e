from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.engine.scheduler import Item, Limits, Scheduler
from sparsehub.errors import CancelledError, QueueFullError, StoppingError, UsageError

pytestmark = pytest.mark.soak
LIMITS = Limits(queue_rows=30, batch_tokens=64, batch_rows=4)
ROWS = st.tuples(st.sampled_from("abc"), st.integers(1, 80), st.integers(1, 3))  # key, length, sequences
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.lists(ROWS, min_size=1, max_size=6)),
        st.tuples(st.just("cancel"), st.integers(0, 200)),
        st.tuples(st.just("take"), st.none()),
    ),
    max_size=40,
)


def scheduler_of(
    limits: Limits,
    lane: Callable[[Any], Hashable | None] = lambda key: ("own", key),
    cost: Callable[[Sequence[Item]], float] = lambda rows: -len(rows),
) -> Scheduler:
    """By default every key has a lane of its own, and the largest batch is the cheapest."""
    return Scheduler(
        limits, SimpleNamespace(lane_of=lane, own_share=lambda _: 1.0), SimpleNamespace(cost_per_token=cost)
    )


def item(key: str = "a", length: int = 8, sequences: int = 1, deadline: float | None = None) -> Item:
    return Item(key, length, None, sequences, deadline)


def budget(batch: list[Item]) -> int:
    """Tokens of a batch with its padding."""
    return max(row.length for row in batch) * sum(row.sequences for row in batch)


def drain(scheduler: Scheduler) -> list[list[Item]]:
    return list(iter(lambda: scheduler.next_batch(0), []))


@given(STEPS)
def test_every_row_is_in_exactly_one_batch_or_cancelled(steps: list[tuple[str, object]]) -> None:
    scheduler, submitted, batches = scheduler_of(LIMITS), [], []
    for verb, argument in steps:
        if verb == "submit":
            rows = [item(*row) for row in argument]  # type: ignore[attr-defined]
            before = scheduler.waiting
            try:
                scheduler.submit(rows)
                submitted += rows
            except QueueFullError as error:
                assert error.retry_after > 0
                live = sum(not row.future.done() and not row.future.running() for row in submitted)
                assert scheduler.waiting <= before  # all or nothing
                assert live + len(rows) > LIMITS.queue_rows  # and never while there is room
        elif verb == "cancel" and submitted:
            submitted[argument % len(submitted)].future.cancel()  # type: ignore[operator]
        elif verb == "take":
            waiting = [row for row in submitted if not row.future.running() and not row.future.cancelled()]
            batch = scheduler.next_batch(0)
            assert bool(batch) == bool(waiting)
            if batch:
                assert waiting[0] in batch, "the oldest row waits on"
                batches.append(batch)
    batches += drain(scheduler)
    assert scheduler.waiting == 0
    taken = [id(row) for batch in batches for row in batch]
    assert len(taken) == len(set(taken))
    assert {id(row) for row in submitted} == set(taken) | {id(row) for row in submitted if row.future.cancelled()}
    for batch in batches:
        assert len({row.key for row in batch}) == 1
        assert len(batch) <= LIMITS.batch_rows
        assert len(batch) == 1 or budget(batch) <= LIMITS.batch_tokens
        assert all(row.future.running() for row in batch)


def test_a_row_above_the_budget_runs_alone() -> None:
    scheduler = scheduler_of(LIMITS)
    large, small = item(length=1000), item(length=1)
    scheduler.submit([large, small])
    assert drain(scheduler) == [[large], [small]]


def test_rows_of_similar_length_share_a_batch_and_keep_their_order() -> None:
    scheduler = scheduler_of(Limits(batch_tokens=40, batch_rows=3))
    rows = [item(length=length) for length in (10, 30, 9, 31, 11)]
    scheduler.submit(rows)
    assert [[row.length for row in batch] for batch in drain(scheduler)] == [[10, 9, 11], [30], [31]]


def test_a_lonely_row_is_not_starved_by_a_popular_key() -> None:
    scheduler = scheduler_of(Limits(queue_rows=1000, batch_rows=4))
    scheduler.submit([item("popular") for _ in range(8)])
    lonely = item("lonely")
    scheduler.submit([lonely])
    for taken in itertools.count(1):
        scheduler.submit([item("popular") for _ in range(8)])  # more comes than is ever taken
        if lonely in scheduler.next_batch(0):
            break
        assert taken < 3, "the rows before it are two batches"


def test_what_counts_is_when_a_row_was_queued_not_when_it_was_made() -> None:
    scheduler = scheduler_of(Limits(batch_rows=1))
    late, early = item("late"), item("early")
    scheduler.submit([early])
    scheduler.submit([late])
    assert drain(scheduler) == [[early], [late]]


def test_the_queue_takes_all_rows_of_a_request_or_none() -> None:
    scheduler = scheduler_of(Limits(queue_rows=5))
    scheduler.submit([item() for _ in range(3)])
    with pytest.raises(QueueFullError, match="the queue is full: 3 rows wait") as caught:
        scheduler.submit([item() for _ in range(3)])
    assert caught.value.retry_after > 0
    assert scheduler.waiting == 3
    scheduler.submit([item() for _ in range(2)])
    assert scheduler.waiting == 5


def test_the_wait_that_a_full_queue_suggests_follows_the_throughput() -> None:
    scheduler = scheduler_of(Limits(queue_rows=100))
    scheduler.submit([item(length=100) for _ in range(100)])
    waits = []
    for tokens_per_second in (100, 100_000):
        for _ in range(50):
            scheduler.note(tokens_per_second, 1.0)
        with pytest.raises(QueueFullError) as caught:
            scheduler.submit([item()])
        waits.append(caught.value.retry_after)
    assert waits[0] == pytest.approx(50, rel=0.01)
    assert 0 < waits[1] < 1


def test_more_rows_than_the_queue_can_ever_hold_are_the_callers_fault() -> None:
    with pytest.raises(UsageError, match="more rows than the queue"):
        scheduler_of(Limits(queue_rows=5)).submit([item() for _ in range(6)])


@pytest.mark.parametrize("name", ["queue_rows", "batch_tokens", "batch_rows"])
def test_limits_below_one_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be at least 1"):
        Limits(**{name: 0})


def test_a_passed_deadline_is_answered_and_its_row_never_runs() -> None:
    scheduler = scheduler_of(LIMITS)
    late, fresh = item(deadline=time.monotonic() - 1), item(deadline=time.monotonic() + 60)
    scheduler.submit([late, fresh])
    assert scheduler.next_batch(0) == [fresh]
    with pytest.raises(CancelledError, match="deadline passed"):
        late.future.result(0)


def test_passed_deadlines_make_room_in_a_full_queue() -> None:
    scheduler = scheduler_of(Limits(queue_rows=2))
    scheduler.submit([item(deadline=time.monotonic() - 1) for _ in range(2)])
    scheduler.submit([fresh := item()])
    assert drain(scheduler) == [[fresh]]


def test_cancelled_rows_make_room_and_wake_whoever_waits_for_them() -> None:
    scheduler = scheduler_of(Limits(queue_rows=2))
    gone = [item(), item()]
    scheduler.submit(gone)
    assert all(row.future.cancel() for row in gone)
    scheduler.submit([fresh := item()])
    assert drain(scheduler) == [[fresh]]
    done, _ = concurrent.futures.wait([row.future for row in gone], timeout=1)
    assert len(done) == 2


def test_a_row_that_runs_cannot_be_cancelled_any_more() -> None:
    scheduler = scheduler_of(LIMITS)
    scheduler.submit([row := item()])
    scheduler.next_batch(0)
    assert not row.future.cancel()


def test_closing_refuses_new_rows_and_lets_the_waiting_ones_be_taken() -> None:
    scheduler = scheduler_of(LIMITS)
    scheduler.submit([row := item()])
    scheduler.close()
    with pytest.raises(StoppingError, match="stopping"):
        scheduler.submit([item()])
    assert scheduler.next_batch(None) == [row]
    assert scheduler.next_batch(None) == []


def test_closing_wakes_a_taker_that_waits_for_ever() -> None:
    scheduler, taken = scheduler_of(LIMITS), []
    taker = threading.Thread(target=lambda: taken.append(scheduler.next_batch(None)), daemon=True)
    taker.start()
    scheduler.close()
    taker.join(10)
    assert taken == [[]]


def test_failing_all_answers_everything_that_waits() -> None:
    scheduler = scheduler_of(LIMITS)
    rows = [item(), item("b"), item("c")]
    scheduler.submit(rows)
    rows[1].future.cancel()
    scheduler.fail(CancelledError("it ended"))
    assert scheduler.waiting == 0
    assert drain(scheduler) == []
    for row in (rows[0], rows[2]):
        with pytest.raises(CancelledError, match="it ended"):
            row.future.result(0)


def test_many_threads_submit_and_cancel_while_one_takes() -> None:
    scheduler, threads, rows_each = scheduler_of(Limits(queue_rows=10_000, batch_rows=8)), 16, 60
    rows = [[item(f"key{(i + j) % 5}", 1 + j % 20) for j in range(rows_each)] for i in range(threads)]
    batches: list[list[Item]] = []

    def submit(own: list[Item]) -> None:
        for index, row in enumerate(own):
            scheduler.submit([row])
            if index % 7 == 0:
                row.future.cancel()

    def take() -> None:
        while batch := scheduler.next_batch(None):
            batches.append(batch)
            for row in batch:
                row.future.set_result(None)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(submit, rows))
    scheduler.close()
    taker.join(30)
    everything = [row for own in rows for row in own]
    assert all(row.future.done() for row in everything)
    taken = [id(row) for batch in batches for row in batch]
    assert len(taken) == len(set(taken))
    assert set(taken) == {id(row) for row in everything if not row.future.cancelled()}
    assert scheduler.waiting == 0


def one_lane(_: object) -> str:
    return "all"


def test_rows_of_one_lane_share_a_batch_and_come_key_by_key() -> None:
    scheduler = scheduler_of(Limits(), one_lane)
    rows = [item(key) for key in ("a", "b", "a", "c", "b")]
    for row in rows:
        scheduler.submit([row])
    assert [row.key for row in scheduler.next_batch(0)] == ["a", "a", "b", "b", "c"]


def test_of_rows_that_are_as_long_the_oldest_rows_own_key_comes_first() -> None:
    scheduler = scheduler_of(Limits(batch_rows=3), one_lane)
    for row in [item("a"), *(item("b") for _ in range(4)), item("a"), item("a")]:
        scheduler.submit([row])
    assert [row.key for row in scheduler.next_batch(0)] == ["a", "a", "a"]
    assert [row.key for row in scheduler.next_batch(0)] == ["b", "b", "b"]


def test_rows_of_another_lane_wait_for_a_batch_of_their_own() -> None:
    scheduler = scheduler_of(Limits(), lambda key: "alone" if key == "b" else "all")
    for row in [item("a"), item("b"), item("c")]:
        scheduler.submit([row])
    assert [row.key for row in scheduler.next_batch(0)] == ["a", "c"]
    assert [row.key for row in scheduler.next_batch(0)] == ["b"]


def test_a_batch_of_many_keys_keeps_to_its_budget() -> None:
    scheduler = scheduler_of(Limits(batch_tokens=40), one_lane)
    for length, key in [(10, "a"), (30, "b"), (11, "c"), (12, "d"), (9, "e")]:
        scheduler.submit([item(key, length)])
    batch = scheduler.next_batch(0)
    assert {row.key for row in batch} == {"a", "c", "e"}
    assert max(row.length for row in batch) * len(batch) <= 40


def test_a_key_that_cannot_run_yet_waits_until_it_can() -> None:
    ready: set[object] = {"a"}
    scheduler = scheduler_of(Limits(), lambda key: "all" if key in ready else None)
    for row in [item("b"), item("a")]:
        scheduler.submit([row])
    assert [row.key for row in scheduler.next_batch(0)] == ["a"]
    assert scheduler.next_batch(0) == [] and scheduler.waiting == 1
    timer = threading.Timer(0.1, lambda: (ready.add("b"), scheduler.wake()))
    timer.start()
    assert [row.key for row in scheduler.next_batch(10)] == ["b"]


def test_failing_some_keys_leaves_the_others() -> None:
    scheduler = scheduler_of(Limits())
    bad, good = item("a"), item("b")
    scheduler.submit([bad])
    scheduler.submit([good])
    scheduler.fail(CancelledError("it could not be loaded"), ["a"])
    with pytest.raises(CancelledError, match="could not be loaded"):
        bad.future.result(0)
    assert drain(scheduler) == [[good]] or scheduler.waiting == 0


def test_the_cheapest_of_the_batches_that_could_be_taken_is() -> None:
    """The oldest row's own key or all of its lane, whole or the half that is most like it."""
    offered: list[list[str]] = []

    def cost(rows: Sequence[Item]) -> float:
        offered.append([row.key for row in rows])
        return abs(len(rows) - 2)

    scheduler = scheduler_of(Limits(), one_lane, cost)
    for key, length in (("a", 8), ("b", 9), ("a", 30), ("b", 8), ("c", 31)):
        scheduler.submit([item(key, length)])
    assert [row.key for row in scheduler.next_batch(0)] == ["a", "a"]
    assert offered == [["a", "a"], ["a"], ["a", "b", "b", "a", "c"], ["a", "b"], ["a"]]


def test_rows_that_are_least_like_the_oldest_are_left_for_another_batch() -> None:
    def padding(rows: Sequence[Item]) -> float:
        return max(row.length for row in rows) * len(rows) / sum(row.length for row in rows) - len(rows) / 10

    scheduler = scheduler_of(Limits(), cost=padding)
    for length in (10, 100, 10, 90, 11, 95, 10, 99):
        scheduler.submit([item("a", length)])
    assert sorted(row.length for row in scheduler.next_batch(0)) == [10, 10, 10, 11]
    assert sorted(row.length for row in scheduler.next_batch(0)) == [90, 95, 99, 100]


def test_rows_of_texts_that_a_batch_has_go_along_and_count_what_runs() -> None:
    """Four texts for one task that runs alone, and for nine that share five of six layers with it."""
    shares = {"whole": 1.0, **{f"upper{n}": 1 / 6 for n in range(9)}}
    lanes = SimpleNamespace(lane_of=lambda _: "mixed", own_share=shares.__getitem__)
    costs = SimpleNamespace(cost_per_token=lambda batch: 1 / len(batch))
    for limits, least, most in (
        (Limits(batch_rows=4), 4, 4.0),
        (Limits(batch_rows=64), 4 * 10, 64.0),
        (Limits(batch_tokens=4 * 8 + 8, batch_rows=64), 4 + 6, 5.0),
    ):
        scheduler = Scheduler(limits, lanes, costs)
        scheduler.submit([Item("whole", 8, None, text=text) for text in "abcd"])
        for task in shares:
            if task != "whole":
                scheduler.submit([Item(task, 8, None, text=text) for text in "abcdefgh"])
        batch = scheduler.next_batch(0)
        texts = {item.text for item in batch}
        runs = len(texts) + (len(batch) - len(texts)) / 6  # in rows: the first of a text whole, the others their share
        assert len(batch) >= least and runs <= most + 1e-9
        assert scheduler.waiting == 4 + 9 * 8 - len(batch)
