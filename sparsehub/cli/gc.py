"""sparsehub gc: garbage collection of a hub, or eviction from this machine's cache."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsehub.cli.output import console, show_json, show_table
from sparsehub.cli.packages import HUB_VARIABLE, WHERE, one_hub
from sparsehub.errors import UsageError
from sparsehub.package.units import size_text


def gc(
    hub: Annotated[
        str | None, typer.Argument(help=f"{WHERE} Default: the local cache, whatever {HUB_VARIABLE} says.")
    ] = None,
    hub_beside: Annotated[str | None, typer.Option("--hub", help="The hub, in place of HUB.")] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the objects; without it they are only listed.")
    ] = False,
    keep_bytes: Annotated[
        int | None,
        typer.Option(help="Evict from the cache, least recently used first, down to this many bytes.", min=0),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """List objects that no version and no channel needs, older than a day; remove them with --delete."""
    hub = one_hub(hub, hub_beside)
    if hub is None:
        _cache(delete, keep_bytes, as_json)
        return
    if keep_bytes is not None:
        raise UsageError("--keep-bytes is for the cache", fix="leave the hub or the option out")
    from sparsehub.cli.packages import open_location
    from sparsehub.hub.gc import find_garbage, remove_garbage

    home = open_location(hub)
    found = find_garbage(home)
    if delete:
        found = remove_garbage(home, found)
    total = sum(item.size for item in found)
    if as_json:
        paths = [{"path": item.path, "bytes": item.size} for item in found]
        show_json({"deleted": delete, "bytes": total, "objects": paths})
        return
    if found:
        show_table(["object", "size"], [[item.path, size_text(item.size)] for item in found])
    done = "removed" if delete else "to remove with --delete"
    console.print(f"{len(found)} objects, {size_text(total)} {done}", highlight=False)


def _cache(delete: bool, keep_bytes: int | None, as_json: bool) -> None:
    from sparsehub.hub.cache import PackageCache
    from sparsehub.hub.user_settings import read_settings

    cache = PackageCache(limit=read_settings().cache_bytes)
    before = cache.size()
    removed = cache.shrink(keep_bytes) if delete else []
    freed = sum(kept.size for kept in removed)
    if as_json:
        show_json({"deleted": delete, "cache": str(cache.root), "bytes": before - freed, "removed": freed})
        return
    limit = cache.limit if keep_bytes is None else keep_bytes
    over = f"{size_text(freed)} removed" if delete else f"{size_text(max(0, before - limit))} over the limit"
    console.print(f"{cache.root}: {size_text(before - freed)} of {size_text(limit)}, {over}", highlight=False)
