"""sparsehub lock: pin task references to digests, in a lock file that is committed with a project."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sparsehub.cli.output import show_json, show_table
from sparsehub.cli.packages import HUB_VARIABLE, WHERE, hub_of_environment
from sparsehub.errors import UsageError
from sparsehub.hub.lockfile import LOCK_FILE, Lock


def lock(
    references: Annotated[
        list[str] | None, typer.Argument(help="References to pin or to update (default: check the file).")
    ] = None,
    hub: Annotated[
        str | None, typer.Option(help=f"{WHERE} Default: that of the lock file, else {HUB_VARIABLE}.")
    ] = None,
    file: Annotated[Path, typer.Option(help="The lock file.")] = Path(LOCK_FILE),
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; check that the hub still has these digests.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Pin references to digests. A version whose bytes have changed since it was locked is refused."""
    from sparsehub.cli.packages import open_location
    from sparsehub.hub.lockfile import check_pin, lock_references, read_lock, write_lock

    before = read_lock(file) if file.exists() or check or not references else None
    where = hub or (before.hub if before else hub_of_environment())
    if where is None:
        raise UsageError("no hub is given", fix="give --hub")
    home = open_location(where)
    if check or not references:
        assert before is not None, "it was read above"
        for pin in before.tasks:
            check_pin(pin, home)
        _show(before, as_json)
        return
    locked = lock_references(references, home, before, where)
    write_lock(file, locked)
    _show(locked, as_json)


def _show(locked: Lock, as_json: bool) -> None:
    if as_json:
        show_json(dataclasses.asdict(locked))
        return
    show_table(["task", "digest"], [[f"{pin.name}@{pin.version}", pin.digest] for pin in locked.tasks])
