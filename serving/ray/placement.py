"""Which replica gets a request, by Ray's own parts: of the replicas that have its task ready the less busy one of two;
for a request for several tasks, of those that have most of them."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any

from ray.serve.request_router import FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter

from serving.ray.routing import tasks_of


class MostTasksRouter(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):  # type: ignore[misc] # it has no types
    """Ray Serve asks it in every front; `serving.ray.app` names it."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Replicas to try, rank by rank; where all of a rank are at their limit of requests, the next gets it."""
        tasks = tasks_of(pending_request.metadata.multiplexed_model_id) if pending_request is not None else []
        if len(tasks) > 1:
            pending_request.routing_context.should_backoff = True  # before all ranks are tried again
            return [two_of(rank) for rank in ranked(candidate_replicas, tasks)]
        ids = self.apply_multiplex_routing(pending_request) if tasks else self.apply_locality_routing(pending_request)
        return [two_of([replica for replica in candidate_replicas if replica.replica_id in ids])]


def ranked(replicas: Sequence[Any], tasks: Collection[str]) -> list[list[Any]]:
    """Replicas by how many of these tasks they have ready, the most first; of as many, those first that have the fewest
    tasks in all."""
    ranks: dict[tuple[int, int], list[Any]] = {}
    for replica in replicas:
        ready = replica.multiplexed_model_ids
        ranks.setdefault((-len(ready.intersection(tasks)), len(ready)), []).append(replica)
    return [ranks[place] for place in sorted(ranks)]


def two_of(replicas: Sequence[Any]) -> list[Any]:
    """Two at random, of which Ray takes the less busy one: nearly as good as to ask all."""
    return random.sample(replicas, min(2, len(replicas)))
