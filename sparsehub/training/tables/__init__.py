"""Readers of data files, one small file per format; training, `extract --test` and `stability` read rows so."""

from sparsehub.training.tables.files import FILES, read_file
from sparsehub.training.tables.layout_settings import Layout
from sparsehub.training.tables.table import Table

__all__ = ["FILES", "Layout", "Table", "read_file"]
