"""Search over a hub's listing: by name, backbone, kind, tag and measured metrics."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sparsehub.errors import UsageError
from sparsehub.hub.listing import HubEntry
from sparsehub.schema import unknown_name

SPLITS = ("test", "validation")  # in this order, where a condition names no split
_CONDITION = re.compile(r"(?:(?P<split>[^<>=:]+):)?(?P<metric>[^<>=:]+?)\s*(?P<sign>>=|<=|>|<)\s*(?P<value>[-+.\deE]+)")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Condition:
    """A bound on a metric, such as `accuracy>=0.9`."""

    split: str | None  # None for the first of test and validation that was measured
    metric: str
    sign: str  # one of >= <= > <
    value: float

    def holds(self, entry: HubEntry) -> bool:
        """Whether an entry's metric is within the bound; one without that metric is not."""
        row = entry.metrics.get(self.split or measured_split(entry), {})
        return self.metric in row and _SIGNS[self.sign](row[self.metric], self.value)


@dataclass(frozen=True)
class Query:
    """What to look for; everything that is given must match."""

    text: str = ""  # a part of the task's name
    backbone: str | None = None  # a part of its id, or the beginning of its fingerprint
    kind: str | None = None
    tag: str | None = None  # a version or a channel
    conditions: tuple[Condition, ...] = ()

    def matches(self, entry: HubEntry) -> bool:
        backbone, fingerprint = entry.backbone.lower(), entry.fingerprint.removeprefix("sha256:")
        wanted = (self.backbone or "").lower()
        return (
            entry.error is None
            and self.text.lower() in entry.name
            and (wanted in backbone or fingerprint.startswith(wanted.removeprefix("sha256:")))
            and self.kind in (None, entry.kind)
            and (self.tag is None or self.tag == entry.version or self.tag in entry.channels)
            and all(condition.holds(entry) for condition in self.conditions)
        )


def parse_condition(text: str) -> Condition:
    """Parse `accuracy>=0.9` or `validation:f1>0.5`; raises `UsageError`."""
    found = _CONDITION.fullmatch(text.strip())
    try:
        if found is not None:
            split = found["split"]
            return Condition(
                split.strip() if split else None, found["metric"].strip(), found["sign"], float(found["value"])
            )
    except ValueError:
        pass
    raise UsageError("not a condition on a metric", found=text[:200], expected="accuracy>=0.9 or validation:f1>0.5")


def search(entries: Iterable[HubEntry], query: Query) -> list[HubEntry]:
    """The entries that match, in their order."""
    return [entry for entry in entries if query.matches(entry)]


def named_nowhere(entries: Iterable[HubEntry], query: Query) -> list[str]:
    """What a query names and no entry of its kind has: its backbone, its tag, its metrics and their splits, each with
    the nearest name there is.

    For whoever has found nothing: a misspelt name fits nothing too.
    """
    sound = [entry for entry in entries if entry.error is None and query.kind in (None, entry.kind)]
    tags = {tag for entry in sound for tag in (entry.version, *entry.channels)}
    splits = {split for entry in sound for split in entry.metrics}
    metrics = {metric for entry in sound for row in entry.metrics.values() for metric in row}
    named = [("version or channel", query.tag, tags)] if query.tag else []
    if query.backbone and not search(sound, Query(backbone=query.backbone)):
        named.append(("backbone", query.backbone, {entry.backbone for entry in sound}))
    for condition in query.conditions:
        named += [("split", condition.split, splits)] if condition.split else []
        named.append(("metric", condition.metric, metrics))
    return [unknown_name(what, name, sorted(known)) for what, name, known in named if known and name not in known]


def measured_split(entry: HubEntry) -> str:
    """The split whose metrics are compared: test before validation."""
    return next((split for split in SPLITS if entry.metrics.get(split)), SPLITS[0])
