"""Where training rows come from: files, folders of splits, data sets of the Hugging Face Hub, and tables in memory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator

from sparsehub.errors import DataError, SparsehubError
from sparsehub.extras import require
from sparsehub.files import sha256_bytes, sha256_file
from sparsehub.progress import work
from sparsehub.settings import wrong_type
from sparsehub.training.tables.files import FILES, format_of, read_file
from sparsehub.training.tables.folder import split_files
from sparsehub.training.tables.layout_settings import Layout
from sparsehub.training.tables.parquet import declared_labels
from sparsehub.training.tables.table import Part, Table, joined


def _check_source(value: Any) -> Any:
    """A path as text; a table as it is."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if _is_rows(value) or _is_a(value, "datasets", "Dataset") or _is_a(value, "pandas", "DataFrame"):
        return value
    raise wrong_type(
        "a file, data-set[:configuration]:split, a list of dicts, a datasets.Dataset or a pandas.DataFrame"
    )


def _is_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(row, Mapping) for row in value)


def _is_a(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a library's class; where nobody has imported the library, it cannot be."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


if TYPE_CHECKING:
    import datasets
    import pandas

    Source: TypeAlias = str | Path | Sequence[Mapping[str, Any]] | datasets.Dataset | pandas.DataFrame
else:
    Source = Annotated[Any, BeforeValidator(_check_source)]

AS_DETECTED = Layout()


def read_table(source: Source, name: str, wanted: Sequence[str] | None = None, layout: Layout = AS_DETECTED) -> Table:
    """The rows of a source, with the fields in use. Raises `DataError`, which names the file and the line.

    name: of a table in memory, for errors. wanted: the fields in use; None for all. layout: of a CSV or TSV file, where
    the user says it.
    """
    shown = source_name(source, name)
    try:
        if not isinstance(source, str | Path):
            return _in_memory(source, shown, wanted)
        files = source_files(source)
        if files is not None:
            tables = [_read_file(path, wanted, layout) for path in files]
            return (
                tables[0]
                if len(files) == 1 and Path(source).expanduser() == files[0]
                else joined(tables, [f"{path.name} in {shown}" for path in files])
            )
        return _read_hub(str(source), wanted, layout)
    except SparsehubError:
        raise
    except Exception as error:  # the libraries behind the readers raise whatever they like
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{shown} cannot be read as a data set", found=reason[0][:300]) from error


def _read_file(path: Path, wanted: Sequence[str] | None, layout: Layout) -> Table:
    with work(f"reading {path.name}"):
        return read_file(path, wanted, layout)


def source_files(source: str | Path) -> tuple[Path, ...] | None:
    """The files that a source names; None for a data set of the Hub. Raises `DataError` where they are not there."""
    path = Path(source).expanduser()
    if path.is_file():
        return (path,)
    if str(source) and path.is_dir():
        fix = f"name one of its files, or a split: {source}:train"
        raise DataError(f"{source} is a folder, where rows of one split are expected", fix=fix)
    folder, _, split = str(source).rpartition(":")
    if folder and split and Path(folder).expanduser().is_dir():
        return split_files(Path(folder).expanduser(), split)
    if format_of(path.name):
        raise DataError(f"there is no file {source}", found=f"working folder {Path.cwd()}")
    return None


def source_name(source: Source, name: str) -> str:
    """What errors call a source: a file or data set by what was given, a table in memory by its `name`."""
    return str(source) if isinstance(source, str | Path) else name


def source_digest(source: Source) -> str | None:
    """sha256 of files' bytes or of a table's rows and types; None for a data set of the Hub."""
    if isinstance(source, str | Path):
        return _digest_of_files(source)
    table = read_table(source, "the rows")
    contents = [repr(table.fields), repr(table.declared), list(table.rows)]
    return sha256_bytes(json.dumps(contents, sort_keys=True, default=repr).encode())


def _digest_of_files(source: str | Path) -> str | None:
    try:
        files = source_files(source) or ()
    except DataError:  # said when the rows are read
        return None
    digests = [sha256_file(path) for path in files]
    return sha256_bytes("".join(digests).encode()) if len(digests) > 1 else next(iter(digests), None)


def _in_memory(source: Any, name: str, wanted: Sequence[str] | None) -> Table:
    if _is_rows(source):
        return _of_dicts(source, name, wanted)
    datasets = require("datasets", "train")
    if not isinstance(source, datasets.Dataset):
        source = datasets.Dataset.from_pandas(source, preserve_index=False)
    return _of_dataset(source, name, wanted)


def _of_dicts(source: Sequence[Mapping[str, Any]], name: str, wanted: Sequence[str] | None) -> Table:
    """Rows as they are; numpy's numbers become Python's. A field of lists and of single values is no field."""
    fields = tuple(dict.fromkeys(field for row in source for field in row))
    used = fields if wanted is None else wanted
    rows = [{field: _plain(row.get(field)) for field in used} for row in source]
    for field in used:
        kinds = {type(row[field]) for row in rows} - {type(None)}
        if list in kinds and len(kinds) > 1:
            found = f"{' and '.join(sorted(kind.__name__ for kind in kinds))} in {field!r}"
            raise DataError(f"{name} cannot be read as a data set", found=found, expected="values of one type")
    return Table(rows, fields, (Part(name),))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) or _is_a(value, "numpy", "ndarray"):
        return [_plain(item) for item in value]
    return value.item() if _is_a(value, "numpy", "generic") else value


def _of_dataset(source: Any, name: str, wanted: Sequence[str] | None) -> Table:
    fields = tuple(source.column_names)
    if wanted is not None:
        source = source.select_columns([field for field in fields if field in wanted])
    rows = source.to_list() if source.column_names else [{}] * len(source)
    return Table(rows, fields, (Part(name),), declared_labels(source.features))


def _read_hub(source: str, wanted: Sequence[str] | None, layout: Layout) -> Table:
    """A split of a data set of the Hub. CSV files in it are read as files are, and never by guesses at their types."""
    datasets = require("datasets", "train")
    name, _, split = source.rpartition(":")
    name, _, configuration = name.partition(":")
    if not name or not split:
        raise DataError(f"{source!r} is no data source", expected=f"a file ({FILES}) or data-set[:configuration]:split")
    builder = datasets.load_dataset_builder(name, configuration or None)
    files = getattr(builder.config, "data_files", None) or {}
    if split in files and not builder.info.features and all(format_of(str(file)) for file in files[split]):
        manager = datasets.DownloadManager()
        paths = {str(file): Path(manager.download(str(file))) for file in files[split]}
        return joined([read_file(path, wanted, layout, name=file) for file, path in paths.items()], list(paths))
    return _of_dataset(datasets.load_dataset(name, configuration or None, split=split), source, wanted)
