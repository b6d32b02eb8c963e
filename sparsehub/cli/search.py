"""sparsehub search: find packages in a hub."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsehub.cli.hub import show_entries
from sparsehub.cli.packages import HUB_ARGUMENT


def search(
    hub: Annotated[str, HUB_ARGUMENT],
    text: Annotated[str, typer.Argument(help="A part of the task's name.")] = "",
    backbone: Annotated[
        str | None, typer.Option(help="A part of the backbone's id, or the beginning of its fingerprint.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="The task's kind: text-classification, regression, ...")] = None,
    tag: Annotated[str | None, typer.Option(help="A version or a channel: 1.0.0, stable.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A condition: 'accuracy>=0.9', 'validation:f1>0.5'; may be repeated.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Search all versions, not only the newest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Find packages by name, backbone, kind, tag and metric; all conditions must match."""
    from sparsehub.cli.packages import open_location
    from sparsehub.hub.search import Query, parse_condition
    from sparsehub.hub.search import search as find

    query = Query(text, backbone, kind, tag, tuple(map(parse_condition, metric or ())))
    entries = open_location(hub).list(newest=not everything and tag is None)
    show_entries(find(entries, query), as_json, "nothing fits; list everything: sparsehub ls " + hub)
