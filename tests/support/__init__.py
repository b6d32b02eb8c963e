"""Servers, processes, checkpoints and packages that tests of more than one folder need."""

from __future__ import annotations

import os

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"  # `make soak`: tests run in their long forms
