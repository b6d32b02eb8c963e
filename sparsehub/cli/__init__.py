"""The command line: one file per verb. Nothing here imports torch before a verb needs it."""

from sparsehub.cli.app import main

__all__ = ["main"]
