"""sparsehub copy: copy packages from one hub to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsehub.cli.output import show_json, show_table
from sparsehub.cli.packages import POLICY


def copy(
    references: Annotated[list[str], typer.Argument(help="Task references; with --all: task names.")],
    source: Annotated[str, typer.Option("--from", help="The hub to copy from.")],
    target: Annotated[str, typer.Option("--to", help="The hub to copy to.")],
    everything: Annotated[bool, typer.Option("--all", help="All versions of the tasks, and their channels.")] = False,
    policy: Annotated[Path | None, typer.Option(help=POLICY)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON list.")] = False,
) -> None:
    """Copy packages byte for byte, with their digests and signatures. A channel that is named is copied too."""
    from sparsehub.cli.packages import open_location, policy_of, task_of
    from sparsehub.cli.transfers import transfer
    from sparsehub.hub.copying import copy_package, references_of

    origin, goal, allowed, copied = open_location(source), open_location(target), policy_of(policy), []
    wanted = [r for name in references for r in references_of(task_of(name), origin)] if everything else references
    for reference in wanted:
        with transfer(f"copying {reference}") as report:
            copied.append(copy_package(reference, origin, goal, policy=allowed, progress=report))
    if as_json:
        show_json([{"name": r.name, "version": r.version, "digest": r.digest, "channel": r.channel} for r in copied])
        return
    rows = [[f"{r.name}@{r.version}", r.channel or "", r.digest] for r in copied]
    show_table(["copied", "channel", "digest"], rows)
