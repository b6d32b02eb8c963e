"""sparsehub push, pull, ls: packages into a hub, out of it, and what is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sparsehub.cli.output import console, errors, progress, show_fields, show_json, show_table, size
from sparsehub.hub.protocol import Entry

_METRICS = {"regression": "pearson", "token-classification": "f1"}  # the one that a listing shows; else accuracy


def push(
    package: Annotated[Path, typer.Argument(help="A package folder.")],
    hub: Annotated[str, typer.Argument(help="The hub: a folder.")],
    version: Annotated[
        str | None, typer.Option(help="Publish under this version (default: the package's own).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Publish under this name (default: the package's own).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Publish a package. A version is published once and never changes."""
    from sparsehub.hub import open_hub

    resolved = open_hub(hub).publish(package, name=name, version=version)
    if as_json:
        show_json({"name": resolved.name, "version": resolved.version, "digest": resolved.digest, "hub": hub})
        return
    show_fields(f"published {resolved.name}@{resolved.version}", {"hub": hub, "digest": resolved.digest})


def pull(
    reference: Annotated[str, typer.Argument(help="name, name@version or name@sha256:...")],
    hub: Annotated[str, typer.Option(help="The hub: a folder.")],
    out: Annotated[Path, typer.Option(help="The package folder to write.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Fetch a package; every byte is hashed on its way."""
    from sparsehub.hub import open_hub

    home = open_hub(hub)
    resolved = home.resolve(reference)
    progress(f"fetching {resolved.name}@{resolved.version or resolved.digest}")
    manifest = home.fetch(resolved, out)
    if as_json:
        show_json({"name": manifest.name, "version": manifest.version, "digest": resolved.digest, "package": str(out)})
        return
    show_fields(f"{manifest.name}@{manifest.version}", {"package": out, "digest": resolved.digest})


def ls(
    hub: Annotated[str, typer.Argument(help="The hub: a folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """List what a hub holds."""
    from sparsehub.hub import open_hub

    entries = open_hub(hub).list()
    if as_json:
        show_json([dataclasses.asdict(entry) for entry in entries])
        return
    if not entries:
        console.print(f"{hub} holds no tasks yet; publish one: sparsehub push PACKAGE {hub} --version 1.0.0")
        return
    columns = ["task", "kind", "entries", "size", "measured"]
    show_table(columns, [_line(entry) for entry in entries])
    console.print(f"[dim]on {escape(', '.join(sorted({entry.backbone for entry in entries if not entry.error})))}[/]")
    for entry in entries:
        if entry.error:
            errors.print(f"[red]damaged:[/] {escape(f'{entry.name}@{entry.version}: {entry.error}')}")


def _line(entry: Entry) -> list[object]:
    name = f"{entry.name}@{entry.version}"
    if entry.error:
        return [name, "(damaged)", "", "", ""]
    split = next((name for name in ("test", "validation") if entry.metrics.get(name)), "")
    metric = _METRICS.get(entry.kind, "accuracy")
    value = entry.metrics.get(split, {}).get(metric)
    measured = f"{split} {metric} {value:.3f}" if value is not None else ""
    return [name, entry.kind, f"{entry.nnz:,} ({entry.density:.2%})", size(entry.size), measured]
