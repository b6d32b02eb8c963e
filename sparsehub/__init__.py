"""sparsehub: sparse task deltas for one shared transformer, trained, packaged, published and served."""

__version__ = "0.1.0"
