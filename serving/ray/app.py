"""The endpoint on Ray Serve: `serve run serving.ray.app:app replicas=3`, with the settings of any endpoint.

A replica is one engine with all routes, the same as in one process. The ingress reads which tasks a request asks, and
Ray's model multiplexing sends it to a replica that has them ready, or most of them; where those are busy, to one more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.ray.ingress import Ingress
from serving.ray.placement import MostTasksRouter
from serving.ray.replica import Replica
from serving.settings import Settings, absolute, read_settings
from sparsehub.errors import UsageError
from sparsehub.extras import require
from sparsehub.schema import build

serve = require("ray.serve", "ray")
config = require("ray.serve.config", "ray")
FRONT_REQUESTS = 256  # that one front holds, bodies and all


@dataclass(frozen=True)
class Scale:
    """How many processes. replicas, max_replicas: Ray adds replicas from the first to the second as they get busy.

    requests: of one replica at once; beyond it a task goes to one more replica.
    tasks: that a replica has ready at once, as many as its memory for tasks takes; 0 is no bound.
    cpus: of a replica, and its threads of torch. fronts: processes that place the requests.
    """

    replicas: int = 1
    max_replicas: int = 0
    requests: int = 32
    tasks: int = 0
    cpus: int = 1
    fronts: int = 1

    def __post_init__(self) -> None:
        if min(self.replicas, self.requests, self.fronts) < 1 or min(self.max_replicas, self.tasks, self.cpus) < 0:
            raise UsageError("a number of processes is at least 1", found=str(self))


def app(args: Mapping[str, Any]) -> Any:
    """What `serve run` and `serve deploy` start. Raises `UsageError` for settings that make no sense together."""
    scale = build(Scale, {key: _number(value) for key, value in args.items()}, "the arguments", UsageError)
    settings = absolute(read_settings(os.environ))
    check(settings, scale)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that this process starts sends no usage statistics
    placement = config.RequestRouterConfig(request_router_class=MostTasksRouter)
    options = {**replica_options(settings, scale), "request_router_config": placement}
    replicas = serve.deployment(Replica).options(**options).bind(settings, scale.tasks)
    front = serve.deployment(Ingress).options(
        num_replicas=scale.fronts,
        max_ongoing_requests=FRONT_REQUESTS,
        max_queued_requests=FRONT_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
    )
    return front.bind(settings, replicas)


def check(settings: Settings, scale: Scale) -> None:
    """Raises `UsageError`."""
    if settings.catalog is None:
        raise UsageError(
            "replicas need a catalogue: it says which versions all of them serve",
            fix="make one: sparsehub catalog add ./hub#production TASK, and set SPARSEHUB_CATALOG=./hub#production",
        )
    if settings.console:
        raise UsageError("the console is the page of one process, and has no place before replicas", fix="leave it out")
    if settings.device_mib and not scale.tasks:
        raise UsageError(
            f"a replica has {settings.device_mib} MiB for tasks, but how many tasks that are is not said",
            fix="give it: tasks=NUMBER (GET /v1/tasks says how large each is)",
        )


def replica_options(settings: Settings, scale: Scale) -> dict[str, Any]:
    """Of Ray Serve, for the deployment of the replicas."""
    size: dict[str, Any] = {"num_replicas": scale.replicas}
    if scale.max_replicas > scale.replicas:
        size = {
            "num_replicas": None,
            "autoscaling_config": {
                "min_replicas": scale.replicas,
                "max_replicas": scale.max_replicas,
                "target_ongoing_requests": max(1.0, scale.requests / 2),
            },
        }
    return {
        **size,
        "max_ongoing_requests": scale.requests,
        "graceful_shutdown_timeout_s": settings.timeout + 10,
        "ray_actor_options": {"num_cpus": scale.cpus, "num_gpus": int(settings.device.startswith("cuda"))},
        "logging_config": {"enable_access_log": False},
    }


def _number(value: Any) -> Any:
    """The command line gives text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value
