"""The sparse change of a backbone: what it is (`delta`) and how it lies on disk (`io`)."""

from sparsehub.delta.delta import Delta, ParameterDelta, value_dtypes
from sparsehub.delta.io import DELTA_FILE, delta_bytes, read_delta

__all__ = ["DELTA_FILE", "Delta", "ParameterDelta", "delta_bytes", "read_delta", "value_dtypes"]
