"""sparsehub ask: the answers of one or several tasks to a text, to the lines of a file, or to JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsehub.cli.output import errors, progress, show_json, show_table
from sparsehub.cli.packages import HUB, load_reference
from sparsehub.errors import DataError, SparsehubError, UsageError
from sparsehub.progress import work

if TYPE_CHECKING:
    from sparsehub.api.ask import Answer
    from sparsehub.package import Package
    from sparsehub.package.outputs import Prediction

STANDARD_INPUT = "-"
SHOWN = 60  # characters of a text in a table


def ask(
    tasks: Annotated[str, typer.Argument(help="A package folder or a task reference; several between commas.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts. Without any, --input or standard input.")] = None,
    hub: Annotated[str | None, HUB] = None,
    source: Annotated[
        str | None, typer.Option("--input", metavar="FILE", help="A text a line; - is standard input.")
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Lines are JSON: a text, or an object with the tasks' fields.")
    ] = False,
    backbone: Annotated[
        str | None, typer.Option(help="The backbone: a folder or a hub id (default: the packages' own).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the Hugging Face Hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each text.")] = False,
) -> None:
    """Ask tasks about texts, without an endpoint. An input that a task cannot read has an error in its place."""
    from sparsehub.api.ask import ask as answer
    from sparsehub.backbone import load_backbone

    if texts and source:
        raise UsageError("texts are arguments or lines of a file, not both", found=f"{len(texts)} texts and --input")
    packages = _packages(tasks, hub)
    record = packages[0].manifest.backbone
    progress(f"loading {backbone or record.id}")
    loaded = load_backbone(backbone or record.id, revision=revision or (None if backbone else record.revision or None))
    failed, table = 0, _Table(tuple(packages))
    with ExitStack() as stack:
        inputs = iter(texts) if texts else _lines(stack, source or STANDARD_INPUT, jsonl)
        if texts or source not in (None, STANDARD_INPUT):  # else somebody may be typing
            stack.enter_context(work("asking"))
        for given, answers in answer(packages, inputs, loaded):
            failed += sum(found.error is not None for found in answers)
            if as_json:
                show_json({"input": given, "answers": [_as_json(found) for found in answers]})
            else:
                table.add(given, answers)
    table.show()
    if failed:
        raise SparsehubError(f"{failed} answers are missing; their errors stand in their places")


def _packages(tasks: str, hub: str | None) -> list[Package]:
    from sparsehub.cli.extract import split_list

    references = split_list(tasks)
    if not references:
        raise UsageError("no task is named", expected="a package folder or a task reference")
    return [load_reference(reference, hub) for reference in references]


def _lines(stack: ExitStack, source: str, jsonl: bool) -> Iterator[Any]:
    """The texts of a file, line by line; empty lines are left out."""
    file = sys.stdin
    if source != STANDARD_INPUT:
        try:
            file = stack.enter_context(Path(source).expanduser().open(encoding="utf-8"))
        except OSError as error:
            raise UsageError("the input cannot be read", found=f"{source}: {error.strerror}") from None
    elif sys.stdin.isatty():
        errors.print("[dim]a text a line; end with Ctrl-D[/]")
    for number, line in enumerate(file, 1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield _from_json(text, f"{source}, line {number}") if jsonl else text


def _from_json(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{place}: no JSON", found=str(error), fix="leave --jsonl out for lines of plain text"
        ) from None


def _as_json(answer: Answer) -> dict[str, Any]:
    manifest, found = answer.package.manifest, answer.prediction
    named: dict[str, Any] = {"task": f"{manifest.name}@{manifest.version}", "digest": answer.package.digest}
    if found is None:
        return {**named, "error": str(answer.error)}
    return {**named, **_said(manifest.task.labels, found)}


def _said(labels: Sequence[str], found: Prediction) -> dict[str, Any]:
    """What a prediction says, of its kind's own fields."""
    if found.words:
        return {"words": [_said(labels, word) for word in found.words]}
    if found.value is not None:
        return {"value": found.value}
    if found.labels is not None:
        return {"labels": list(found.labels), "probs": dict(zip(labels, found.scores, strict=True))}
    return {"label": found.label, "probs": dict(zip(labels, found.scores, strict=True))}


class _Table:
    """Answers for people: a line for each text and task, printed at the end."""

    def __init__(self, packages: Sequence[Package]):
        self._packages = packages
        self._rows: list[list[str]] = []
        self._texts = 0

    def add(self, given: Any, answers: Sequence[Answer]) -> None:
        self._texts += 1
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        short = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
        for index, answer in enumerate(answers):
            self._rows.append([short if not index else "", answer.package.manifest.name, *_shown(answer)])

    def show(self) -> None:
        if self._rows:
            first = 0 if self._texts > 1 else 1  # one text is what the user has just typed
            show_table(["text", "task", "answer", "score"][first:], [row[first:] for row in self._rows])


def _shown(answer: Answer) -> list[str]:
    """The answer and how sure it is."""
    found = answer.prediction
    if found is None:
        return [f"error: {answer.error}", ""]
    if found.words:
        return [" ".join(str(word.label) for word in found.words), ""]
    if found.value is not None:
        return [f"{found.value:.4f}", ""]
    if found.labels is not None:
        return [", ".join(found.labels) or "none of the labels", f"{max(found.scores):.3f}"]
    return [str(found.label), f"{max(found.scores):.3f}"]
