"""Parquet files: every value in the type that the file says, and only the columns in use are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsehub.errors import DataError
from sparsehub.extras import require
from sparsehub.training.tables.table import Part, Row, Table


def read_parquet(path: Path, wanted: Sequence[str] | None) -> Table:
    """The table of a Parquet file; raises `DataError`."""
    arrow, reader = require("pyarrow", "train"), require("pyarrow.parquet", "train")
    try:
        with reader.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = [name for name in schema.names if wanted is None or name in wanted]
            rows: list[Row] = []
            for batch in file.iter_batches(columns=names):
                rows += batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as a data set", found=str(error).splitlines()[0][:300]) from error
    declared = declared_labels(require("datasets", "train").Features.from_arrow_schema(schema))
    return Table(rows, tuple(schema.names), (Part(str(path)),), declared, detected=("Parquet",))


def declared_labels(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names behind the numbers of every `ClassLabel` column, or of lists of them, by field."""
    names = {field: getattr(getattr(feature, "feature", feature), "names", None) for field, feature in features.items()}
    return {field: tuple(found) for field, found in names.items() if found}
