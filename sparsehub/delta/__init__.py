"""The sparse change of a backbone: what it is (`delta`), its file (`serialization`), how two compare (`overlap`)."""

from sparsehub.delta.delta import Delta, ParameterDelta, value_dtypes
from sparsehub.delta.overlap import Overlap, overlap
from sparsehub.delta.serialization import DELTA_FILE, delta_bytes, parse_delta, read_delta

__all__ = [
    "DELTA_FILE",
    "Delta",
    "Overlap",
    "ParameterDelta",
    "delta_bytes",
    "overlap",
    "parse_delta",
    "read_delta",
    "value_dtypes",
]
