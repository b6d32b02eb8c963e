"""The rows of a run, their labels, and the task that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sparsehub.errors import DataError
from sparsehub.package.encoding import is_blank, is_broken, text_of, words_of
from sparsehub.package.manifest_builder import metric_names
from sparsehub.package.task_spec import (
    EMBEDDING,
    EVEN,
    MULTI_LABEL,
    PROBLEM_TYPES,
    REGRESSION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    TaskSpec,
    label_columns,
)
from sparsehub.training.config import TrainConfig
from sparsehub.training.field_checks import SETTING, check_fields, check_layout
from sparsehub.training.labels import alike, found_labels, kind_that_fits, label_index, number
from sparsehub.training.multi_label import HOW, column_target, listed_target
from sparsehub.training.similarity import text_ids
from sparsehub.training.sources import AS_DETECTED, read_table, source_name
from sparsehub.training.tables.layout_settings import Layout
from sparsehub.training.tables.table import Part, Row, Table, place_of

SPLITS = ("train", "validation", "test")
_UNLABELLED = (REGRESSION, TEXT_GENERATION, EMBEDDING)
MANY_LABELS = 50  # so many, and more than every second row another one, are rarely labels


@dataclass(frozen=True)
class Split:
    """Rows of one split and their labels as the model wants them: an index, a number, an index per word, or 0 and 1 for
    each label of several; of an embedding the pair's score, or an id per text."""

    source: str
    rows: Sequence[Row]
    targets: Sequence[Any]
    parts: Sequence[Part] = ()  # where the rows were read; empty where they are others than those that were read

    def place(self, index: int) -> str:
        """What errors call the row with this number, from 0."""
        return place_of(self.parts or (Part(self.source),), index)


@dataclass(frozen=True)
class TaskData:
    """What a run trains on and is judged by."""

    task: TaskSpec
    train: Split
    validation: Split | None
    test: Split | None

    @property
    def judged(self) -> dict[str, Split]:
        """The splits that are not trained on, by name."""
        return {name: split for name in ("validation", "test") if (split := getattr(self, name)) is not None}


def load_data(config: TrainConfig, report: Callable[[str], None] = lambda _: None) -> TaskData:
    """Read the splits and make the task; raises `DataError`, which names the split, the row and its line.

    report: told what was found out about each file, and what looks like a mistake.
    """
    given = {name: source for name in SPLITS if (source := getattr(config, name)) is not None}
    sources = {name: source_name(source, name) for name, source in given.items()}
    fields = (*config.text, *config.choices)
    columns = label_columns(config.kind, config.label)
    wanted, layout = (*fields, *columns), Layout(config.quoting, config.delimiter, config.encoding)
    tables = {name: read_table(source, name, wanted, layout) for name, source in given.items()}
    check_layout(layout, tables.values())
    label = _label_field(config, tables["train"])
    for name, table in tables.items():
        report(_described(name, sources[name], table))
        check_fields(sources[name], table, fields, label_columns(config.kind, label))
    labels = config.choices or _labels_named(config) or _find_labels(config, tables["train"], sources["train"])
    if config.kind not in _UNLABELLED and not 2 <= len(labels) == len(set(labels)):
        raise DataError("a task needs at least two labels, each of them once", found=", ".join(labels)[:300] or "none")
    for warning in _doubtful(config, labels, tables["train"]):
        report(warning)
    task = TaskSpec(
        kind=config.kind,
        labels=tuple(labels),
        problem_type=PROBLEM_TYPES[config.kind],
        text_fields=tuple(config.text),
        label_field=label,
        max_length=config.max_length,
        metrics=metric_names(config.kind, len(labels), bool(label)),
        choice_fields=tuple(config.choices),
        thresholds=(EVEN,) * len(labels) if config.kind == MULTI_LABEL else (),
    )
    splits = {name: _split(task, sources[name], table) for name, table in tables.items()}
    return TaskData(task, splits["train"], splits.get("validation"), splits.get("test"))


def load_split(
    task: TaskSpec,
    source: str,
    layout: Layout = AS_DETECTED,
    report: Callable[[str], None] = lambda _: None,
    name: str = "test",
    way: str = SETTING,
) -> Split:
    """Rows of one source for a task that is known; raises `DataError`, which names the row and its line.

    name: what the report calls the rows; way: see `check_fields`.
    """
    fields = (*task.text_fields, *task.choice_fields)
    table = read_table(source, source, (*fields, *task.label_columns), layout)
    check_layout(layout, [table])
    report(_described(name, source, table))
    check_fields(source, table, fields, task.label_columns, way)
    return _split(task, source, table)


def _described(name: str, source: str, table: Table) -> str:
    found = ", ".join([f"{len(table.rows):,} rows", *table.detected])
    return f"{name}: {found}" if source == name else f"{name}: {source}: {found}"


def _label_field(config: TrainConfig, table: Table) -> str:
    """The field of the labels; none for a text generation without completions, and an embedding without scores."""
    if config.kind == EMBEDDING and len(config.text) > 2:
        return ""
    whole = config.kind in (TEXT_GENERATION, EMBEDDING) and config.label == TrainConfig.label
    return "" if whole and config.label not in table.fields else config.label


def _labels_named(config: TrainConfig) -> Sequence[str]:
    """The labels that the settings give: by name, or as the fields of 0 and 1 that have one each."""
    columns = label_columns(config.kind, config.label)
    return config.labels if len(columns) < 2 else columns


def _find_labels(config: TrainConfig, table: Table, source: str) -> Sequence[str]:
    """The labels of the training rows: as declared by the data set, or sorted."""
    if config.kind in _UNLABELLED:
        return ()
    if config.label in table.declared:
        return table.declared[config.label]
    different = {str(value): value for value in _labels_of(config.kind, table, config.label)}
    found, fix = (
        found_labels(different.values(), untyped=table.untyped),
        kind_that_fits([*different.values()], config.kind),
    )
    if config.kind == MULTI_LABEL:
        _refuse_switches(found, config.label, source)
    if len(found) < 2:
        raise DataError(f"the rows of {source} need at least two labels", found=", ".join(found) or "none", fix=fix)
    if fix:
        shown = ", ".join(list(different)[:5])[:200]
        raise DataError(f"{config.label!r} of {source} holds no labels", found=shown, fix=fix)
    return found


def _refuse_switches(found: Sequence[str], field: str, source: str) -> None:
    """Raise `DataError` for labels that are not names: none at all, or lists of 0 and 1."""
    if not found or set(found) <= {"0", "1"}:
        shown = "lists of 0 and 1" if found else "no list of labels"
        fix = "--labels 0,1 where these are names" if found else None
        raise DataError(f"{field!r} of {source} holds no labels", found=shown, expected=HOW, fix=fix)


def _labels_of(kind: str, table: Table, label: str) -> Iterator[Any]:
    for row in table.rows:
        value = row[label]
        if kind in (TOKEN_CLASSIFICATION, MULTI_LABEL):
            yield from value if isinstance(value, list) else ()
        else:
            yield value


def _doubtful(config: TrainConfig, labels: Sequence[str], table: Table) -> Iterator[str]:
    """Warnings about labels that make a task, and hardly the one that was meant."""
    yield from alike(labels)
    if len(labels) > max(MANY_LABELS, len(table.rows) / 2) and config.kind != TOKEN_CLASSIFICATION:
        yield f"warning: {config.label!r} has {len(labels):,} labels in {len(table.rows):,} rows: is --label right?"


def _split(task: TaskSpec, source: str, table: Table) -> Split:
    if task.kind == TEXT_GENERATION:
        return _texts(task, source, table)
    names = table.declared.get(task.label_field, ())
    if not set(names) & set(task.labels):
        names = ()  # other names were given: the numbers then count along those
    targets, known = list[Any](), dict[tuple[type, Any], int]()
    for index, row in enumerate(table.rows):
        try:
            _check_text(task, row)
            targets.append(_target(task, row, names, known) if task.label_field else None)
        except DataError as error:
            raise DataError(f"{table.place(index)}: {error}") from error
    if task.kind == EMBEDDING and not task.label_field:
        targets = list[Any](text_ids(table.rows, task.text_fields))
    return Split(source, table.rows, targets, table.parts)


def _texts(task: TaskSpec, source: str, table: Table) -> Split:
    """Rows of text, prompts or conversations: more of what is in them is looked at when they are tokenised."""
    field = task.text_fields[0]
    for index, row in enumerate(table.rows):
        if isinstance(row[field], str):
            try:
                check_readable(row[field], field)
            except DataError as error:
                raise DataError(f"{table.place(index)}: {error}") from error
    return Split(source, table.rows, [None] * len(table.rows), table.parts)


def _named(names: Sequence[str], value: Any) -> Any:
    """Declared numbers as their names, so that the order of the task's labels may be another."""
    if not names:
        return value
    if isinstance(value, list):
        return [_named(names, item) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _check_text(task: TaskSpec, row: Row) -> None:
    if task.kind == TOKEN_CLASSIFICATION:
        field = task.text_fields[0]
        words_of(row, field)
        check_readable(row[field], field)
        return
    for field in (*task.text_fields, *task.choice_fields):
        check_readable(text_of(row, field), field)


def check_readable(text: str | Sequence[str], field: str) -> None:
    """Raise `DataError` for a text that the engine would refuse too. field: names it in the error."""
    if is_blank(text):
        empty = "an empty text" if isinstance(text, str) else "an empty list"
        found = "white space, or characters that cannot be seen" if text else empty
        raise DataError(f"a row has no text in the field {field!r}", found=found, expected="some text")
    if any(map(is_broken, [text] if isinstance(text, str) else text)):
        raise DataError(f"a row has no text in the field {field!r}", found="half of a surrogate pair")


def _target(task: TaskSpec, row: Row, names: Sequence[str], known: dict[tuple[type, Any], int]) -> Any:
    """names: those declared for the label's numbers; known: labels looked up before, by type and value."""
    if len(task.label_columns) > 1:
        return column_target(row, task.label_columns)
    value = _named(names, row[task.label_field])
    if task.kind == MULTI_LABEL:
        return listed_target(task, value)
    if task.kind in (REGRESSION, EMBEDDING):
        return number(value)
    if task.kind != TOKEN_CLASSIFICATION:
        return _index(task, value, known)
    words = words_of(row, task.text_fields[0])
    if not isinstance(value, list) or len(value) != len(words):
        found = f"{len(value)} labels" if isinstance(value, list) else type(value).__name__
        fix = "JSON lines and Parquet hold lists" if isinstance(value, str) else None
        raise DataError("labels and words do not align", found=found, expected=f"a list of {len(words)}", fix=fix)
    return [_index(task, item, known) for item in value]


def _index(task: TaskSpec, value: Any, known: dict[tuple[type, Any], int]) -> int:
    if not isinstance(value, str | int):
        return label_index(task, value)
    place = known.get((type(value), value))
    if place is None:
        place = known[type(value), value] = label_index(task, value)
    return place
