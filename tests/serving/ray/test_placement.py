"""Which replica Ray gives a request to: no Ray runs here."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray Serve needs ray (pip install 'sparsehub[ray]')")

from serving.ray.placement import MostTasksRouter, ranked, two_of


def replica(name: str, *tasks: str) -> Any:
    return SimpleNamespace(replica_id=name, multiplexed_model_ids=set(tasks))


def pending(place: str) -> Any:
    context = SimpleNamespace(should_backoff=False)
    return SimpleNamespace(metadata=SimpleNamespace(multiplexed_model_id=place), routing_context=context)


def router(single: set[str], anywhere: set[str]) -> Any:
    """One whose parts of Ray say which replicas have a task, and which are near."""
    made = object.__new__(MostTasksRouter)
    made.apply_multiplex_routing = lambda request: single
    made.apply_locality_routing = lambda request: anywhere
    return made


REPLICAS = [replica("one", "a", "b"), replica("two", "b", "c", "d"), replica("none"), replica("other", "x", "y")]


def test_replicas_are_ranked_by_the_tasks_that_they_have_ready() -> None:
    def names(*tasks: str) -> list[list[str]]:
        return [[found.replica_id for found in rank] for rank in ranked(REPLICAS, tasks)]

    assert names("b", "c", "d") == [["two"], ["one"], ["none"], ["other"]]
    assert names("a", "b", "z") == [["one"], ["two"], ["none"], ["other"]]
    assert names("z", "w") == [["none"], ["one", "other"], ["two"]]


def test_a_request_for_several_tasks_tries_rank_by_rank() -> None:
    request = pending("b,c,d")
    chosen = asyncio.run(router({"one"}, {"none"}).choose_replicas(REPLICAS, request))
    assert [[found.replica_id for found in rank] for rank in chosen] == [["two"], ["one"], ["none"], ["other"]]
    assert request.routing_context.should_backoff, "or it would try them again and again without a pause"


@pytest.mark.parametrize(("request_", "place"), [(pending("a"), "one"), (pending(""), "none"), (None, "none")])
def test_one_task_or_none_is_placed_as_ray_does_it(request_: Any, place: str) -> None:
    chosen = asyncio.run(router({"one"}, {"none"}).choose_replicas(REPLICAS, request_))
    assert [[found.replica_id for found in rank] for rank in chosen] == [[place]]


def test_of_many_two_are_tried() -> None:
    many = [replica(str(number)) for number in range(20)]
    seen = Counter(found.replica_id for _ in range(500) for found in two_of(many))
    assert len(seen) == 20 and seen.total() == 1000
    assert two_of(many[:1]) == many[:1] and two_of([]) == []
