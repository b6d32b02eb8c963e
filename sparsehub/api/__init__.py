"""Whole jobs in one call, for scripts and notebooks: what `import sparsehub` gives beside the floors' own classes."""
