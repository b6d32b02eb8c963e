"""sparsehub push, pull, ls: publish packages in a hub, fetch them, list them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from sparsehub.cli.output import console, errors, show_fields, show_json, show_table
from sparsehub.cli.packages import (
    HUB_ARGUMENT,
    HUB_BESIDE,
    HUB_VARIABLE,
    POLICY,
    WHERE,
    hub_and_name,
    hub_named,
    hub_of_environment,
)
from sparsehub.errors import UsageError
from sparsehub.hub.listing import HubEntry
from sparsehub.package.units import size_text

if TYPE_CHECKING:
    from sparsehub.hub.package_loader import PulledPackage

# The metric that a listing shows, by kind of task; accuracy for the others.
_METRICS = {"regression": "pearson", "token-classification": "f1", "text-generation": "perplexity"}


def push(
    package: Annotated[Path, typer.Argument(help="A package folder.")],
    hub: Annotated[str | None, HUB_ARGUMENT] = None,
    hub_beside: Annotated[str | None, HUB_BESIDE] = None,
    version: Annotated[
        str | None, typer.Option(help="Publish under this version (default: the package's own).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Publish under this name (default: the package's own).")] = None,
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Visibility of a task that is new on the Hugging Face Hub."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Publish a package in a hub. A version is published once and never changes."""
    from sparsehub.cli.transfers import transfer
    from sparsehub.hub import open_hub

    where = hub_named(hub, hub_beside)
    home = open_hub(where, private=private)
    with transfer(f"publishing {package}") as report:
        resolved = home.publish(package, name=name, version=version, progress=report)
    if as_json:
        show_json({"name": resolved.name, "version": resolved.version, "digest": resolved.digest, "hub": where})
        return
    show_fields(f"published {resolved.name}@{resolved.version}", {"hub": where, "digest": resolved.digest})


def pull(
    references: Annotated[
        list[str] | None, typer.Argument(help="One or more of name, name@version, name@channel, name@sha256:...")
    ] = None,
    hub: Annotated[
        str | None, typer.Option(help=f"{WHERE} Default: with --lock that of the lock file, else {HUB_VARIABLE}.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the package to this new folder.")] = None,
    lock: Annotated[Path | None, typer.Option(help="Fetch what this lock file pins (default: all of it).")] = None,
    policy: Annotated[Path | None, typer.Option(help=POLICY)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object (a list for several).")] = False,
) -> None:
    """Fetch packages into the cache. Every byte is hashed as it comes; cached files only if they were touched since."""
    from sparsehub.cli.packages import open_location, policy_of
    from sparsehub.cli.transfers import transfer
    from sparsehub.hub.lockfile import read_lock
    from sparsehub.hub.package_loader import pull as fetch

    locked = None if lock is None else read_lock(lock)
    wanted = references or ([pin.name for pin in locked.tasks] if locked else [])
    where = hub or (locked.hub if locked else hub_of_environment())
    if not wanted or where is None:
        raise UsageError("nothing to fetch", expected="a reference and --hub, or --lock sparsehub.lock")
    if out is not None and len(wanted) != 1:
        raise UsageError("--out is one folder", found=f"{len(wanted)} references", fix="pull them one by one")
    home, allowed, found = open_location(where), policy_of(policy), []
    for reference in wanted:
        with transfer(f"fetching {reference}") as report:
            found.append(fetch(reference, home, out=out, policy=allowed, lock=locked, progress=report))
    _show_pulled(found, as_json)


def _show_pulled(found: Sequence[PulledPackage], as_json: bool) -> None:
    lines = [
        {
            "name": pulled.manifest.name,
            "version": pulled.manifest.version,
            "digest": pulled.resolved.digest,
            "package": str(pulled.folder),
            "publisher": pulled.publisher,
        }
        for pulled in found
    ]
    if as_json:
        show_json(lines[0] if len(lines) == 1 else lines)
        return
    for line in lines:
        signed = {"publisher": line["publisher"]} if line["publisher"] else {}
        fields = {"package": line["package"], "digest": line["digest"], **signed}
        show_fields(f"{line['name']}@{line['version']}", fields)


def ls(
    hub: Annotated[str | None, HUB_ARGUMENT] = None,
    task: Annotated[str | None, typer.Argument(help="List all versions of this task.")] = None,
    hub_beside: Annotated[str | None, HUB_BESIDE] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all versions of all tasks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """List the tasks of a hub, each at the version that its bare name means."""
    from sparsehub.cli.packages import open_location

    where, name = hub_and_name(hub, task, hub_beside)
    entries = open_location(where).list(name, newest=name is None and not everything)
    show_entries(entries, as_json, f"{where} holds no tasks yet; publish one: sparsehub push PACKAGE {where}")


def show_entries(entries: Sequence[HubEntry], as_json: bool, nothing: str) -> None:
    """Show a listing; damaged versions are reported on standard error."""
    if as_json:
        show_json([dataclasses.asdict(entry) for entry in entries])
        return
    if not entries:
        console.print(escape(nothing), highlight=False)
        return
    channels = any(entry.channels for entry in entries)
    columns = ["task", *(["channels"] if channels else []), "kind", "entries", "size", "measured"]
    show_table(columns, [_line(entry, channels) for entry in entries], drop=("entries", "size", "kind", "channels"))
    backbones = sorted({entry.backbone for entry in entries if not entry.error})
    if backbones:
        console.print(f"[dim]on {escape(', '.join(backbones))}[/]", highlight=False)
    for entry in entries:
        if entry.error:
            errors.print(f"[red]damaged:[/] {escape(f'{entry.name}@{entry.version}: {entry.error}')}")


def _line(entry: HubEntry, channels: bool) -> list[object]:
    shown = [f"{entry.name}@{entry.version}", *([", ".join(entry.channels)] if channels else [])]
    if entry.error:
        return [*shown, "(damaged)", "", "", ""]
    split = next((name for name in ("test", "validation") if entry.metrics.get(name)), "")
    metric = _METRICS.get(entry.kind, "accuracy")
    value = entry.metrics.get(split, {}).get(metric)
    measured = f"{split} {metric} {value:.3f}" if value is not None else ""
    return [*shown, entry.kind, f"{entry.nnz:,} ({entry.density:.2%})", size_text(entry.size), measured]
