"""One answer of what every replica says, for the two routes that tell of the whole endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Merge = Callable[[Mapping[str, bytes]], tuple[bytes, str]]


def metrics(texts: Mapping[str, bytes]) -> tuple[bytes, str]:
    """Every replica's series, each with the label `replica`."""
    registry = CollectorRegistry()
    registry.register(_Labelled(texts))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def tasks(lists: Mapping[str, bytes]) -> tuple[bytes, str]:
    """Every replica's tasks, each entry with the replica that it tells of."""
    data = [{**entry, "replica": replica} for replica, body in lists.items() for entry in json.loads(body)["data"]]
    return json.dumps({"object": "list", "data": data}).encode(), "application/json"


MERGED: dict[str, Merge] = {"/metrics": metrics, "/v1/tasks": tasks}


class _Labelled(Collector):
    def __init__(self, texts: Mapping[str, bytes]):
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text.decode()):
                into = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    into.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        yield from families.values()
