"""Who is let in: oldest first, one lane at a time, never more than the cache holds, and everybody in the end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.engine.generation.admission_queue import AdmissionQueue
from sparsehub.engine.generation.cache_limits import GenerationLimits
from sparsehub.engine.generation.request import Generation, Sampling
from sparsehub.engine.task_registry import TaskInfo
from sparsehub.errors import QueueFullError, StoppingError, UsageError

LIMITS = GenerationLimits(cache_tokens=160, page_tokens=16, sequences=4, waiting=100)


def generation(name: str, lane: str | None = "mixed", prompt: int = 8, tokens: int = 8, deadline=None) -> Generation:
    """A text of a task whose digest is its lane; None: its task is not in memory."""
    task = None if lane is None else TaskInfo(lane, "", lane, None, 0)
    return Generation(name, (1,) * prompt, tokens, Sampling(), task, None, deadline)


def room(limits: GenerationLimits = LIMITS) -> AdmissionQueue:
    return AdmissionQueue(limits, SimpleNamespace(of_task=lambda digest: digest))


def test_those_of_the_oldest_lane_are_let_in_together():
    waiting = room()
    waiting.submit([generation(n, lane) for n, lane in (("a", "x"), ("b", "y"), ("c", "x"))])
    chosen, lane = waiting.admit([], None)
    assert ([g.id for g in chosen], lane) == (["a", "c"], "x")


def test_another_lane_waits_until_what_runs_has_ended():
    waiting = room()
    waiting.submit([generation("b", "y"), generation("c", "x")])
    running = [generation("a", "x")]
    assert waiting.admit(running, "x") == ([], "x")  # c does not overtake b, who waits for x to end
    chosen, lane = waiting.admit([], "x")
    assert ([g.id for g in chosen], lane) == (["b"], "y")


def test_a_task_that_is_not_in_memory_keeps_nobody_else_waiting():
    waiting = room()
    waiting.submit([generation("a", None), generation("b", "x")])
    assert [g.id for g in waiting.admit([], None)[0]] == ["b"]


def test_a_short_text_does_not_overtake_a_long_one_for_which_there_is_no_room():
    waiting = room()
    waiting.submit([generation("long", prompt=100, tokens=50), generation("short")])
    assert waiting.admit([generation("runs", prompt=30)], "mixed") == ([], "mixed")


lanes = st.sampled_from(["mixed", "x", "y"])
requests = st.lists(st.tuples(lanes, st.integers(1, 80), st.integers(1, 70), st.integers(1, 6)), max_size=30)


@given(requests)
def test_all_are_let_in_once_and_the_cache_never_overflows(wanted):
    """Each runs for its number of steps; the running ones are of one lane, and fit."""
    waiting = room()
    asked = [generation(str(i), lane, prompt, tokens) for i, (lane, prompt, tokens, _) in enumerate(wanted)]
    waiting.submit(asked)
    running: dict[str, int] = {}
    seen, lane, by_id = [], None, {g.id: g for g in asked}
    for _ in range(1000):
        chosen, lane = waiting.admit([by_id[name] for name in running], lane)
        for each in chosen:
            running[each.id] = wanted[int(each.id)][3]
            seen.append(each.id)
        assert len({by_id[name].digest for name in running}) <= 1 and len(running) <= 4
        assert sum(LIMITS.pages_of(by_id[name].length) for name in running) <= LIMITS.pages
        running = {name: left - 1 for name, left in running.items() if left > 1}
        if not running and not len(waiting):
            break
    assert sorted(seen) == sorted(by_id)
    of_a_lane = [[n for n in seen if by_id[n].digest == one] for one in ("mixed", "x", "y")]
    assert all(names == sorted(names, key=int) for names in of_a_lane)  # in each lane in the order of arrival


def test_a_full_queue_takes_all_of_a_request_or_nothing():
    waiting = room(GenerationLimits(waiting=3))
    waiting.submit([generation("a"), generation("b")])
    with pytest.raises(QueueFullError):
        waiting.submit([generation("c"), generation("d")])
    assert len(waiting) == 2
    waiting.close()
    with pytest.raises(StoppingError):
        waiting.submit([generation("e")])


def test_the_dead_are_taken_out_with_a_reason():
    waiting = room()
    gone, late, alive = generation("gone"), generation("late", deadline=5.0), generation("alive", deadline=50.0)
    waiting.submit([gone, late, alive])
    gone.cancel()
    assert [(g.id, "deadline" in str(e)) for g, e in waiting.dead(10.0)] == [("gone", False), ("late", True)]
    assert len(waiting) == 1


@pytest.mark.parametrize("wrong", [{"cache_tokens": 0}, {"page_tokens": 2}, {"cache_tokens": 8}, {"waiting": 0}])
def test_limits_that_hold_nothing_are_refused(wrong):
    with pytest.raises(UsageError):
        GenerationLimits(**wrong)
