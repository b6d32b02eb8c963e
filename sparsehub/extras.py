"""Import optional dependencies where they are used; a missing one is an error with the line that installs it."""

from __future__ import annotations

import importlib
from types import ModuleType

from sparsehub.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` installs; raises `MissingExtraError` where it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != name:
            raise  # the module is there and broken inside: hiding that would mislead
        raise MissingExtraError(f"{name} is not installed", fix=f"pip install 'sparsehub[{extra}]'") from error
