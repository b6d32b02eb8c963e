"""sparsehub tag, rollback: move channels, and give versions further names."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsehub.cli.output import show_fields, show_json
from sparsehub.cli.packages import HUB
from sparsehub.hub.resolver import Resolved


def tag(
    reference: Annotated[str, typer.Argument(help="The version to name: name@version, name@channel, ...")],
    tag: Annotated[str, typer.Argument(help="A channel to move (stable, canary), or a version name to give once.")],
    hub: Annotated[str, HUB],
    expect: Annotated[
        str | None, typer.Option(help="Fail unless the channel points at this version or digest now.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Point a channel at a version, or give a version one more name. A word without digits is a channel."""
    from sparsehub.cli.packages import open_location

    home = open_location(hub)
    resolved = home.resolve(reference)
    expected = None if expect is None else home.resolve(f"{resolved.name}@{expect}").digest
    _show(home.tag(resolved.name, tag, resolved.digest, expected=expected), tag, hub, as_json)


def rollback(
    task: Annotated[str, typer.Argument(help="The task's name.")],
    channel: Annotated[str, typer.Argument(help="The channel to move back.")],
    hub: Annotated[str, HUB],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Point a channel at its previous version again; repeat it to go back further."""
    from sparsehub.cli.packages import open_location, task_of

    _show(open_location(hub).rollback(task_of(task), channel), channel, hub, as_json)


def _show(resolved: Resolved, tag: str, hub: str, as_json: bool) -> None:
    if as_json:
        show_json({"name": resolved.name, "tag": tag, "version": resolved.version, "digest": resolved.digest})
        return
    fields = {"version": resolved.version, "digest": resolved.digest, "hub": hub}
    show_fields(f"{resolved.name}@{tag}", fields)
