"""Where training rows come from: files, data sets of the Hugging Face Hub, and tables in memory; all are read alike."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator

from sparsehub.errors import DataError, SparsehubError
from sparsehub.extras import require
from sparsehub.files import sha256_bytes, sha256_file
from sparsehub.settings import wrong_type

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
FILES = ", ".join(_READERS)


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
    from collections.abc import Sequence

    import datasets
    import pandas

    Source: TypeAlias = str | Path | Sequence[Mapping[str, Any]] | datasets.Dataset | pandas.DataFrame
else:
    Source = Annotated[Any, BeforeValidator(_check_source)]


def read_table(source: Source, name: str) -> Any:
    """The rows as a `datasets.Dataset`. name: of a table in memory, for errors. Raises `DataError`."""
    datasets = require("datasets", "train")
    try:
        if not isinstance(source, str | Path):
            return _in_memory(datasets, source)
        path = Path(source)
        if path.is_file():
            return _read_file(datasets, path)
        if path.suffix in _READERS:
            raise DataError(f"there is no file {source}", found=f"working folder {Path.cwd()}")
        return _load_split(datasets, str(source))
    except SparsehubError:
        raise
    except Exception as error:  # the readers behind `datasets` raise whatever they like
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        shown = source_name(source, name)
        raise DataError(f"{shown} cannot be read as a data set", found=reason[0][:300]) from error


def source_name(source: Source, name: str) -> str:
    """What errors call a source: a file or data set by what was given, a table in memory by its `name`."""
    return str(source) if isinstance(source, str | Path) else name


def source_digest(source: Source) -> str | None:
    """sha256 of a file's bytes or of a table's rows and types; None for a data set of the Hub."""
    if isinstance(source, str | Path):
        return sha256_file(Path(source)) if Path(source).is_file() else None
    table = read_table(source, "the rows")
    return sha256_bytes(json.dumps([repr(table.features), table.to_list()], sort_keys=True, default=repr).encode())


def _in_memory(datasets: Any, source: Any) -> Any:
    if isinstance(source, datasets.Dataset):
        return source
    if _is_rows(source):
        fields = dict.fromkeys(field for row in source for field in row)
        return datasets.Dataset.from_dict({field: [row.get(field) for row in source] for field in fields})
    return datasets.Dataset.from_pandas(source, preserve_index=False)


def _load_split(datasets: Any, source: str) -> Any:
    name, _, split = source.rpartition(":")
    name, _, configuration = name.partition(":")
    if not name or not split:
        raise DataError(f"{source!r} is no data source", expected=f"a file ({FILES}) or data-set[:configuration]:split")
    return datasets.load_dataset(name, configuration or None, split=split)


def _read_file(datasets: Any, path: Path) -> Any:
    if path.suffix not in _READERS:
        raise DataError(f"{path}: unknown kind of file", found=path.suffix, expected=FILES)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    options: dict[str, Any] = {}
    if path.suffix in (".csv", ".tsv"):  # only an empty cell is missing: "None" and "NA" are texts like any other
        options = {"delimiter": "," if path.suffix == ".csv" else "\t", "keep_default_na": False, "na_values": [""]}
    if path.suffix == ".txt":  # a text from one empty line to the next is a row
        options = {"sample_by": "paragraph"}
    return datasets.load_dataset(_READERS[path.suffix], data_files=str(path.resolve()), split="train", **options)
