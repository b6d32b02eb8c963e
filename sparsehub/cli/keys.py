"""sparsehub keys: who may ask an endpoint, kept in a file of hashes that a running endpoint follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsehub.cli.output import JSON, progress, show_json, show_table

if TYPE_CHECKING:
    from serving.auth.keys import KeyRing

app = typer.Typer(help="Keys of an endpoint: add, remove, ls.", no_args_is_help=True, pretty_exceptions_enable=False)
FileArgument = Annotated[Path, typer.Argument(help="The key file; it holds hashes only.")]


@app.command("add")
def add(
    file: FileArgument,
    name: Annotated[str, typer.Argument(help="What the key is called in logs.")],
    role: Annotated[str, typer.Option(help="predict, watch (metrics and state) or admin.")] = "predict",
    task: Annotated[list[str] | None, typer.Option(help="A task or a pattern (support-*); may be repeated.")] = None,
    requests_per_second: Annotated[float | None, typer.Option(help="Of each replica.")] = None,
    tokens_per_second: Annotated[float | None, typer.Option(help="Of each replica.")] = None,
    as_json: bool = JSON,
) -> None:
    """Make a key and print it, this once: the file gets its hash."""
    from serving.auth.keys import Key, new_secret
    from sparsehub.files import sha256_bytes

    secret = new_secret()
    tasks = tuple(task or ("*",))
    key = Key(name, sha256_bytes(secret.encode()), role, tasks, requests_per_second, tokens_per_second)
    _change(file, lambda ring: ring.with_key(key))
    if as_json:
        show_json({"name": name, "key": secret, "role": role, "tasks": tasks})
        return
    progress(f"{name} may {role} {', '.join(tasks)}; keep the key, it is shown this once:")
    typer.echo(secret)


@app.command("remove")
def remove(file: FileArgument, name: Annotated[str, typer.Argument(help="The key's name.")]) -> None:
    """Let a key be known no longer; running endpoints follow within seconds."""
    _change(file, lambda ring: ring.without(name))
    progress(f"{name} is removed")


@app.command("ls")
def ls(file: FileArgument, as_json: bool = JSON) -> None:
    """The keys of a file; the keys themselves are nowhere."""
    from serving.auth.keys import parse_keys
    from sparsehub.errors import NotFoundError
    from sparsehub.hub.documents import FileDocument

    found = FileDocument(file).read()
    if found is None:
        raise NotFoundError(f"there is no key file at {file}", fix="make one: sparsehub keys add FILE NAME")
    ring = parse_keys(found[0])
    if as_json:
        show_json(ring.to_json())
        return
    columns = ("name", "role", "requests/s", "tokens/s", "tasks")
    rows = [
        (key.name, key.role, key.requests_per_second or "-", key.tokens_per_second or "-", ", ".join(key.tasks))
        for key in ring.keys
    ]
    show_table(columns, rows)


def _change(file: Path, edit: Callable[[KeyRing], KeyRing]) -> None:
    from serving.auth.keys import change_keys
    from sparsehub.hub.documents import FileDocument

    change_keys(FileDocument(file, private=True), edit)
