"""Scripts that measure sparsehub, one package for each part of it; nothing here is part of the package."""
