"""sparsehub keys: the API keys of an endpoint, in a file of hashes that running endpoints reload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsehub.cli.choices import one_of
from sparsehub.cli.help_page import Verb, VerbGroup
from sparsehub.cli.output import JSON, progress, show_json, show_table

if TYPE_CHECKING:
    from serving.auth.keys import KeyRing

app = typer.Typer(
    cls=VerbGroup,
    help="API keys of an endpoint: add, remove, ls.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
ROLES = ("predict", "watch", "admin")
FileArgument = Annotated[Path, typer.Argument(help="The key file, which holds hashes only.")]


@app.command("add", cls=Verb)
def add(
    file: FileArgument,
    name: Annotated[str, typer.Argument(help="The key's name, as logs show it.")],
    role: Annotated[str, one_of(ROLES, "What it may do; watch reads metrics and state.")] = "predict",
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task or a pattern (support-*) that it may use; may be repeated. Default: all."),
    ] = None,
    requests_per_second: Annotated[float | None, typer.Option(help="Rate limit of each replica.")] = None,
    tokens_per_second: Annotated[float | None, typer.Option(help="Rate limit of each replica.")] = None,
    weight: Annotated[float, typer.Option(help="Its share of a busy machine, beside the other keys' weights.")] = 1.0,
    as_json: bool = JSON,
) -> None:
    """Create a key and print it, once: the file stores only its hash."""
    from serving.auth.keys import Key, new_secret
    from sparsehub.files import sha256_bytes

    secret = new_secret()
    tasks = tuple(task or ("*",))
    key = Key(name, sha256_bytes(secret.encode()), role, tasks, requests_per_second, tokens_per_second, weight)
    _change(file, lambda ring: ring.with_key(key))
    if as_json:
        show_json({"name": name, "key": secret, "role": role, "tasks": tasks})
        return
    progress(f"{name} may {role} {', '.join(tasks)}; keep the key, it is shown this once:")
    typer.echo(secret)


@app.command("remove", cls=Verb)
def remove(file: FileArgument, name: Annotated[str, typer.Argument(help="The key's name.")]) -> None:
    """Remove a key; running endpoints reject it within seconds."""
    _read(file)
    _change(file, lambda ring: ring.without(name))
    progress(f"removed {name}")


@app.command("ls", cls=Verb)
def ls(file: FileArgument, as_json: bool = JSON) -> None:
    """List the keys of a file by name; the keys themselves are stored nowhere."""
    ring = _read(file)
    if as_json:
        show_json(ring.to_json())
        return
    columns = ("name", "role", "requests/s", "tokens/s", "weight", "tasks")
    rows = [
        (
            key.name,
            key.role,
            key.requests_per_second or "-",
            key.tokens_per_second or "-",
            f"{key.weight:g}",
            ", ".join(key.tasks),
        )
        for key in ring.keys
    ]
    show_table(columns, rows, drop=("weight", "tokens/s", "requests/s"))


def _read(file: Path) -> KeyRing:
    """The keys of a file; raises `NotFoundError` where there is none."""
    from serving.auth.keys import parse_keys
    from sparsehub.errors import NotFoundError
    from sparsehub.hub.documents import FileDocument

    found = FileDocument(file).read()
    if found is None:
        raise NotFoundError(f"there is no key file at {file}", fix="create one: sparsehub keys add FILE NAME")
    return parse_keys(found[0])


def _change(file: Path, edit: Callable[[KeyRing], KeyRing]) -> None:
    from serving.auth.keys import change_keys
    from sparsehub.hub.documents import FileDocument

    change_keys(FileDocument(file, private=True), edit)
