"""Fairness of the scheduler and of admission, in a simulated machine: batches are taken, and time is what they hold."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehub.engine.fair_share import ANYONE, Flow, Tenant, most_of
from sparsehub.engine.generation.admission_queue import OTHERS, AdmissionQueue
from sparsehub.engine.generation.cache_limits import GenerationLimits
from sparsehub.engine.generation.pace import Pace
from sparsehub.engine.generation.request import Generation, Sampling
from sparsehub.engine.scheduler import Item, Limits, Scheduler
from sparsehub.errors import QueueFullError
from tests.support import SOAK

pytestmark = pytest.mark.soak
LIMITS = Limits(queue_rows=100_000, batch_tokens=512, batch_rows=16)
WEIGHTS = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=6)
FEW = settings(max_examples=1000 if SOAK else 12)
LENGTHS = st.lists(st.integers(8, 64), min_size=1, max_size=20)


def scheduler(limits: Limits = LIMITS, *, shared: bool = True) -> Scheduler:
    """shared: whether rows of all tasks may share a batch. The largest batch is the cheapest."""
    lanes = SimpleNamespace(lane_of=lambda key: "all" if shared else key, own_share=lambda _: 1.0)
    return Scheduler(limits, lanes, SimpleNamespace(cost_per_token=lambda rows: -len(rows)))


def rows(tenant: Tenant, task: str, lengths: list[int]) -> list[Item]:
    return [Item((task, False), length, None, flow=Flow(tenant, task)) for length in lengths]


def size(batch: list[Item]) -> int:
    """What a batch takes, in tokens with its padding."""
    return max(row.length for row in batch) * len(batch)


def tenants_of(weights: list[float]) -> list[Tenant]:
    return [Tenant(f"key{number}", weight) for number, weight in enumerate(weights)]


@FEW
@given(WEIGHTS, LENGTHS, st.booleans())
def test_those_who_want_all_they_can_get_are_given_tokens_by_their_weights(weights, lengths, shared):
    """Whatever came first: the one who is last was given at most three batches less than its share."""
    scheduled, tenants, given_to = scheduler(shared=shared), tenants_of(weights), Counter[str]()
    for tenant in tenants:
        scheduled.submit(rows(tenant, f"task of {tenant.name}", (lengths * 100)[:200]))
    for _ in range(40):
        for row in scheduled.next_batch(0):
            given_to[row.flow.tenant.name] += row.tokens
        if any(not scheduled._queues.rows[tenant] for tenant in tenants):
            break  # one has all that it wanted
    share = sum(given_to.values()) / sum(weights)
    for tenant in tenants:
        assert given_to[tenant.name] >= tenant.weight * share - 3 * LIMITS.batch_tokens, given_to


@FEW
@given(WEIGHTS, LENGTHS, st.integers(8, 64), st.booleans(), st.integers(0, 30))
def test_a_lone_row_waits_for_one_batch_whatever_others_have_queued(weights, lengths, length, shared, before):
    scheduled = scheduler(shared=shared)
    for tenant in tenants_of(weights):
        scheduled.submit(rows(tenant, f"task of {tenant.name}", (lengths * 100)[:600]))
    for _ in range(before):
        scheduled.next_batch(0)
    (lone,) = light = rows(Tenant("light"), "another task", [length])
    scheduled.submit(light)
    assert lone in scheduled.next_batch(0)


@FEW
@given(st.integers(2, 40), st.integers(1, 4))
def test_lone_rows_of_many_share_the_next_batches(count, each):
    """As few as hold them all, though a greedy one has queued more than anybody can run."""
    scheduled = scheduler()
    scheduled.submit(rows(Tenant("greedy"), "popular", [16] * 500))
    scheduled.next_batch(0)
    light = [row for n in range(count) for row in rows(Tenant(f"light{n}"), f"task{n % each}", [16])]
    for row in light:
        scheduled.submit([row])
    needed = -(-len(light) // LIMITS.batch_rows) + 1
    taken = list(itertools.chain(*(scheduled.next_batch(0) for _ in range(needed))))
    assert set(map(id, light)) <= set(map(id, taken))


@FEW
@given(st.integers(1, 6), st.booleans())
def test_one_who_asks_again_and_again_does_not_keep_the_others_out(weight, shared):
    scheduled, given_to = scheduler(shared=shared), Counter[str]()
    greedy, quick = Tenant("greedy"), Tenant("quick", float(weight))
    for _ in range(20 * (weight + 1)):
        scheduled.submit(rows(greedy, "a", [32] * 20))
        if not scheduled._queues.rows[quick]:
            scheduled.submit(rows(quick, "b", [32] * 2))  # always a little, and never nothing
        for row in scheduled.next_batch(0):
            given_to[row.flow.tenant.name] += row.tokens
    assert given_to["greedy"] * weight >= given_to["quick"] - 2 * LIMITS.batch_tokens * weight


@FEW
@given(st.lists(st.integers(8, 64), max_size=3), st.lists(st.integers(8, 64), min_size=1, max_size=3), st.booleans())
def test_no_row_waits_for_ever_behind_younger_ones(lengths, others, shared):
    """A long row of a tenant whose short ones go along in the batches of others is led to its turn."""
    scheduled = scheduler(shared=shared)
    (old,) = long = rows(Tenant("mixed"), "a", [400])
    scheduled.submit(long)
    for _ in range(400):
        scheduled.submit(rows(Tenant("mixed"), "a", lengths))
        scheduled.submit(rows(Tenant("steady"), "b", others))
        if old in scheduled.next_batch(0):
            return
    pytest.fail("it never ran")


def test_tasks_of_one_tenant_share_what_it_is_given():
    scheduled, given_to = scheduler(shared=False), Counter[str]()
    scheduled.submit(rows(ANYONE, "popular", [32] * 500))
    scheduled.submit(rows(ANYONE, "other", [32] * 100))
    for _ in range(10):
        given_to.update(row.flow.task for row in scheduled.next_batch(0))
    assert given_to == {"popular": 80, "other": 80}


def test_a_light_row_runs_without_others_as_long_as_that_loses_little():
    """A batch costs 10 ms and as much again for every 512 tokens: a row of 16 alone loses 9.4 ms of the machine."""
    scheduled = scheduler()
    scheduled._costs = SimpleNamespace(cost_per_token=lambda rows: 0.01 / sum(r.tokens for r in rows) + 0.01 / 512)
    scheduled.submit(rows(Tenant("greedy"), "a", [16] * 500))

    def light_batch() -> list[Item]:
        (lone,) = light = rows(Tenant("light"), "b", [16])
        scheduled.submit(light)
        batch = scheduled.next_batch(0)
        assert lone in batch
        return batch

    assert len(light_batch()) == LIMITS.batch_rows  # nothing was earned yet
    scheduled.note(512, 0.15)
    assert len(light_batch()) == LIMITS.batch_rows  # 7.5 ms are not enough
    scheduled.note(512, 0.15)
    assert len(light_batch()) == 1
    assert len(light_batch()) == LIMITS.batch_rows
    scheduled.note(512, 1000.0)  # not more than a short batch takes is kept
    assert [len(light_batch()) for _ in range(7)] == [1] * 5 + [LIMITS.batch_rows] * 2
    scheduled.note(512, 1000.0)
    assert len(scheduled.next_batch(0)) == LIMITS.batch_rows  # the greedy one's own rows are in no haste


def test_batches_are_short_only_while_several_tenants_ask():
    scheduled = scheduler(Limits(queue_rows=1000))
    scheduled.note(4000, 1.0)
    scheduled.submit(rows(Tenant("greedy"), "a", [16] * 400))
    assert size(scheduled.next_batch(0)) == 64 * 16
    scheduled.submit(rows(Tenant("light"), "a", [16]))
    assert size(scheduled.next_batch(0)) == 64 * 16  # until then the greedy one was alone
    assert size(scheduled.next_batch(0)) == 512  # fewer would cost more
    scheduled.note(10**9, 1.0)
    assert size(scheduled.next_batch(0)) == 64 * 16


def test_a_tenant_may_fill_a_queue_only_as_far_as_there_is_room_for_others():
    scheduled = scheduler(Limits(queue_rows=100))
    greedy, second = Tenant("greedy"), Tenant("second", 2.0)
    scheduled.submit(rows(greedy, "a", [8] * 40))
    scheduled.submit(rows(greedy, "a", [8] * 10))
    with pytest.raises(
        QueueFullError, match="50 rows of greedy wait, and the rest of the queue is for others"
    ) as caught:
        scheduled.submit(rows(greedy, "a", [8]))
    assert caught.value.retry_after > 0
    scheduled.submit(rows(second, "a", [8] * 20))
    scheduled.submit(rows(second, "a", [8] * 5))
    with pytest.raises(QueueFullError, match="second"):
        scheduled.submit(rows(second, "a", [8]))
    scheduled.submit(rows(Tenant("third"), "a", [8] * 25))  # its first request may take what is left
    with pytest.raises(QueueFullError, match="the queue is full: 100 rows wait"):
        scheduled.submit(rows(Tenant("fourth"), "a", [8]))


def test_without_keys_one_may_have_all_of_the_queue():
    scheduled = scheduler(Limits(queue_rows=10))
    for _ in range(10):
        scheduled.submit(rows(ANYONE, "a", [8]))
    assert scheduled.waiting == 10


def test_what_would_wait_longer_than_it_may_is_refused_at_once(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("sparsehub.engine.scheduler.time", SimpleNamespace(monotonic=lambda: now))
    scheduled, greedy, light = scheduler(Limits(queue_rows=1000)), Tenant("greedy"), Tenant("light")
    scheduled.note(100, 1.0)

    def late(tenant: Tenant, count: int) -> list[Item]:
        return [Item("a", 10, None, deadline=now + 20, flow=Flow(tenant, "a")) for _ in range(count)]

    scheduled.submit(late(greedy, 300))  # nothing waits: a prediction may be wrong, and is corrected by what runs
    with pytest.raises(QueueFullError, match="would wait 31 s, and may wait 20") as caught:
        scheduled.submit(late(greedy, 10))
    assert caught.value.retry_after == pytest.approx(11, abs=0.2)
    scheduled.submit(late(light, 10))  # its share of the machine is half
    with pytest.raises(QueueFullError, match="would wait 22 s"):
        scheduled.submit(late(light, 100))
    scheduled.note(10_000, 1.0)
    scheduled.submit(late(light, 100))


@FEW
@given(st.integers(0, 1000), st.integers(0, 1000), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([1.0, OTHERS]))
def test_what_a_tenant_may_hold_leaves_room_by_its_weight(held, free, weight, others):
    tenant, heaviest = Tenant("a", weight), Tenant("b", 4.0)
    most = most_of(tenant, [tenant, heaviest], held, free, others)
    assert most <= others * weight / 4 * (held + free - most) + 1e-6
    assert most_of(tenant, [], held, free, others) == pytest.approx((held + free) * others / (1 + others))
    assert most_of(ANYONE, [heaviest], held, free) > 1e9


# text generation

TEXTS = GenerationLimits(cache_tokens=1600, page_tokens=16, sequences=16, waiting=400)


def text(tenant: Tenant, task: str = "a", tokens: int = 8, deadline: float | None = None) -> Generation:
    return Generation("", (1,) * 8, tokens, Sampling(), None, None, deadline, flow=Flow(tenant, task))


def admission(limits: GenerationLimits = TEXTS) -> AdmissionQueue:
    return AdmissionQueue(limits, SimpleNamespace(of_task=lambda _: "all"))


@FEW
@given(WEIGHTS)
def test_those_who_want_many_texts_get_places_by_their_weights(weights):
    """A step at a time one text ends, and another is admitted."""
    waiting, tenants = admission(), tenants_of(weights)
    for tenant in tenants:
        waiting.submit([text(tenant) for _ in range(30)])
    running, lane = waiting.admit([], None)
    began = Counter(each.flow.tenant for each in running)
    while all(len([g for g in waiting._queue if g.flow.tenant == tenant]) for tenant in tenants):
        running = running[1:]
        more, lane = waiting.admit(running, lane)
        began.update(each.flow.tenant for each in more)
        running += more
    share = began.total() / sum(weights)
    assert all(began[tenant] >= tenant.weight * share - 8 for tenant in tenants), began


@FEW
@given(st.integers(1, 6))
def test_no_tenant_has_all_of_the_cache_and_a_light_one_begins_at_once(greedy):
    waiting = admission()
    for number in range(greedy):
        waiting.submit([text(Tenant(f"greedy{number}"), tokens=152) for _ in range(20)])
    running, lane = waiting.admit([], None)
    waiting.submit([light := text(Tenant("light"), tokens=24)])
    admitted, _ = waiting.admit(running, lane)
    assert light in admitted
    if greedy == 1:
        assert len(running) == 8  # of 10 for which there is room


def test_a_text_that_holds_nothing_yet_waits_for_all_the_room_that_it_needs():
    waiting = admission()
    waiting.submit([text(Tenant("large"), tokens=1500)])
    assert len(waiting.admit([], None)[0]) == 1


def test_texts_that_would_wait_too_long_are_refused_at_once(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("sparsehub.engine.generation.admission_queue.time", SimpleNamespace(monotonic=lambda: now))
    waiting, greedy, light = admission(), Tenant("greedy"), Tenant("light")
    for _ in range(8):
        waiting.pace.note_step(4, 0.4)
        waiting.pace.note_text(50, 100)
    waiting.submit([text(greedy, tokens=1000, deadline=now + 30)])  # 50 s; nothing waits
    with pytest.raises(QueueFullError, match="would wait 55 s, and may wait 30") as caught:
        waiting.submit([text(greedy, tokens=100, deadline=now + 30)])
    assert caught.value.retry_after == pytest.approx(25)
    waiting.submit([text(light, tokens=100, deadline=now + 30)])


def test_a_tenants_texts_may_wait_only_as_far_as_there_is_room_for_others():
    waiting = admission(GenerationLimits(waiting=10))
    waiting.submit([text(Tenant("greedy")) for _ in range(5)])
    with pytest.raises(QueueFullError, match="5 sequences of greedy wait"):
        waiting.submit([text(Tenant("greedy"))])
    waiting.submit([text(Tenant("light"))])


def test_the_pace_counts_the_time_of_prompts_and_knows_nothing_at_first():
    pace = Pace()
    pace.note_step(0, 1.0)
    pace.note_step(10, 1.0)
    assert pace.seconds(100) == 0.0
    for _ in range(8):
        pace.note_text(10, 20)
    assert pace.seconds(100) == pytest.approx(10.0)
