"""Replicas with a device that takes its time, for a machine whose cores cannot show what three replicas are worth."""

from __future__ import annotations

import time
from typing import Any

from serving.ray.ingress import Ingress
from serving.ray.replica import Replica
from serving.settings import Settings

ROW_SECONDS = 0.02  # that the device takes for a row, while it leaves the cores alone


class SlowReplica(Replica):
    """The product's replica. Before each forward pass it sleeps as long as the rows of the batch would take."""

    def __init__(self, settings: Settings, tasks: int):
        super().__init__(settings, tasks)
        module = self._running.service.engine.backbone.module
        module.register_forward_pre_hook(_wait, with_kwargs=True)


class BlindFront(Ingress):
    """Places requests without looking at their tasks: what multiplexing is compared with."""

    async def _task(self, *_: Any) -> str:
        return ""


def _wait(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
    time.sleep(ROW_SECONDS * len(kwargs["input_ids"] if "input_ids" in kwargs else args[0]))
