"""The app and the one place where errors become a message and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer
from rich.markup import escape

from sparsehub import __version__
from sparsehub.cli import (
    catalog,
    compare,
    copy,
    demo,
    export,
    extract,
    gc,
    hub,
    inspect,
    keys,
    lock,
    materialize,
    merge,
    search,
    serve,
    show,
    sign,
    stability,
    tag,
    train,
    verify,
)
from sparsehub.cli.lazy_command import LazyCommand
from sparsehub.cli.output import errors
from sparsehub.cli.usage_errors import usage_error
from sparsehub.errors import SparsehubError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="sparsehub",
    help="Train, publish and serve sparse task deltas on one copy of a pretrained transformer.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("train", cls=LazyCommand)(train.train)
app.command("stability", cls=LazyCommand)(stability.stability)
app.command("extract", cls=LazyCommand)(extract.command)
app.command("merge")(merge.merge)
app.command("diff")(merge.diff)
app.command("export")(export.export)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("push")(hub.push)
app.command("pull")(hub.pull)
app.command("ls")(hub.ls)
app.command("search")(search.search)
app.command("show")(show.show)
app.command("tag")(tag.tag)
app.command("rollback")(tag.rollback)
app.command("lock")(lock.lock)
app.command("sign")(sign.sign)
app.command("copy")(copy.copy)
app.command("gc")(gc.gc)
app.command("compare")(compare.compare)
app.command("materialize")(materialize.materialize)
app.command("serve", cls=LazyCommand)(serve.serve)
app.add_typer(keys.app, name="keys")
app.add_typer(catalog.app, name="catalog")
app.command("demo")(demo.demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=False)
def _root(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the whole traceback of an error; goes anywhere."),
) -> None:
    del version, debug  # debug is read from the arguments themselves, so that it may stand after the verb


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 an error (one readable message), 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(_run([argument for argument in given if argument != "--debug"] or ["--help"], debug))


def _run(arguments: list[str], debug: bool) -> int:
    command = typer.main.get_command(app)
    try:
        result: Any = command.main(args=arguments, prog_name="sparsehub", standalone_mode=False)
        if result == EXIT_INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise typer.Abort
        return result if isinstance(result, int) else 0
    except SparsehubError as error:
        return _report(str(error), debug)
    except typer.exceptions.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # which typer does not export: a group of verbs, named alone
            error.show()  # type: ignore[attr-defined]
            return EXIT_ERROR
        return _report(str(usage_error(error)), debug)
    except typer.Abort:
        errors.print("[yellow]interrupted[/]")
        return EXIT_INTERRUPTED
    except Exception as error:
        hint = "" if debug else "; run again with --debug for the traceback"
        return _report(f"unexpected {type(error).__name__}: {error}{hint}", debug)


def _report(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    line = " ".join(message.split())
    errors.print(f"[bold red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
    return EXIT_ERROR
