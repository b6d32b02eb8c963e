"""sparsehub search: find packages in a hub."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsehub.cli.choices import one_of
from sparsehub.cli.hub import show_entries
from sparsehub.cli.output import progress
from sparsehub.cli.packages import HUB_ARGUMENT, HUB_BESIDE, hub_and_name
from sparsehub.package.task_spec import KINDS


def search(
    hub: Annotated[str | None, HUB_ARGUMENT] = None,
    text: Annotated[str | None, typer.Argument(help="A part of the task's name.")] = None,
    hub_beside: Annotated[str | None, HUB_BESIDE] = None,
    backbone: Annotated[
        str | None, typer.Option(help="A part of the backbone's id, or the beginning of its fingerprint.")
    ] = None,
    kind: Annotated[str | None, one_of(KINDS, "The task's kind.")] = None,
    tag: Annotated[str | None, typer.Option(help="A version or a channel: 1.0.0, stable.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A condition: 'accuracy>=0.9', 'validation:f1>0.5'; may be repeated.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Search all versions, not only the newest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Find packages by name, backbone, kind, tag and metric; all conditions must match."""
    from sparsehub.cli.packages import open_location
    from sparsehub.hub.search import Query, named_nowhere, parse_condition
    from sparsehub.hub.search import search as find

    where, part = hub_and_name(hub, text, hub_beside)
    query = Query(part or "", backbone, kind, tag, tuple(map(parse_condition, metric or ())))
    entries = open_location(where).list(newest=not everything and tag is None)
    found = find(entries, query)
    for nowhere in [] if found else named_nowhere(entries, query):
        progress(nowhere)
    show_entries(found, as_json, "nothing fits; list everything: sparsehub ls " + where)
