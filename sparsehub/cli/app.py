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
    ask,
    catalog,
    compare,
    copy,
    demo,
    evaluate,
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
from sparsehub.cli.help_page import Verb, VerbGroup
from sparsehub.cli.lazy_command import LazyCommand
from sparsehub.cli.output import errors
from sparsehub.cli.progress_display import showing_progress
from sparsehub.cli.usage_errors import usage_error
from sparsehub.errors import SparsehubError
from sparsehub.files import at_home

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="sparsehub",
    cls=VerbGroup,
    help="Train, publish and serve sparse task deltas on one copy of a pretrained transformer.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
TRAIN, HUB, SERVE, LOOK = "Train", "Hub", "Serve", "Look"  # the groups of `sparsehub --help`
app.command("train", cls=LazyCommand, rich_help_panel=TRAIN)(train.train)
app.command("extract", cls=LazyCommand, rich_help_panel=TRAIN)(extract.command)
app.command("merge", cls=Verb, rich_help_panel=TRAIN)(merge.merge)
app.command("stability", cls=LazyCommand, rich_help_panel=TRAIN)(stability.stability)
app.command("materialize", cls=Verb, rich_help_panel=TRAIN)(materialize.materialize)
app.command("export", cls=Verb, rich_help_panel=TRAIN)(export.export)
app.command("ask", cls=Verb, rich_help_panel=LOOK)(ask.ask)
app.command("evaluate", cls=LazyCommand, rich_help_panel=LOOK)(evaluate.evaluate)
app.command("inspect", cls=Verb, rich_help_panel=LOOK)(inspect.inspect)
app.command("diff", cls=Verb, rich_help_panel=LOOK)(merge.diff)
app.command("compare", cls=Verb, rich_help_panel=LOOK)(compare.compare)
app.command("verify", cls=Verb, rich_help_panel=LOOK)(verify.verify)
app.command("push", cls=Verb, rich_help_panel=HUB)(hub.push)
app.command("pull", cls=Verb, rich_help_panel=HUB)(hub.pull)
app.command("ls", cls=Verb, rich_help_panel=HUB)(hub.ls)
app.command("search", cls=Verb, rich_help_panel=HUB)(search.search)
app.command("show", cls=Verb, rich_help_panel=HUB)(show.show)
app.command("tag", cls=Verb, rich_help_panel=HUB)(tag.tag)
app.command("rollback", cls=Verb, rich_help_panel=HUB)(tag.rollback)
app.command("lock", cls=Verb, rich_help_panel=HUB)(lock.lock)
app.command("sign", cls=Verb, rich_help_panel=HUB)(sign.sign)
app.command("copy", cls=Verb, rich_help_panel=HUB)(copy.copy)
app.command("gc", cls=Verb, rich_help_panel=HUB)(gc.gc)
app.command("serve", cls=LazyCommand, rich_help_panel=SERVE)(serve.serve)
app.add_typer(catalog.app, name="catalog", rich_help_panel=SERVE)
app.add_typer(keys.app, name="keys", rich_help_panel=SERVE)
app.command("demo", cls=Verb, rich_help_panel=SERVE)(demo.demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sparsehub {__version__}")
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
    sys.exit(_run([_at_home(argument) for argument in given if argument != "--debug"] or ["--help"], debug))


def _at_home(argument: str) -> str:
    """`~/x`, and that of `--flag=~/x`, which no shell replaces."""
    flag, equals, value = argument.partition("=")
    return f"{flag}={at_home(value)}" if equals and flag.startswith("--") else at_home(argument)


def _run(arguments: list[str], debug: bool) -> int:
    command = typer.main.get_command(app)
    try:
        with showing_progress(arguments):
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
