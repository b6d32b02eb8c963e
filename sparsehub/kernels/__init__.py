"""The only door to the kernels: tensors in, tensors out, no knowledge of deltas or tasks.

Every function takes a one-dimensional, contiguous `arena` and one-dimensional `positions` into it.
Positions are int64 or int32, strictly increasing and in range: the caller has checked that, the kernels do not.
"""

from sparsehub.kernels.torch_ops import gather, scatter_add_, scatter_copy_

__all__ = ["gather", "scatter_add_", "scatter_copy_"]
