"""How a stability measurement goes about it: the settings of `sparsehub stability`, without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from sparsehub.settings import FROZEN, Configuration, Flag


@dataclass(frozen=True, config=FROZEN)
class Plan(Configuration):
    """Which refits a stability measurement makes, for each density. Raises `UsageError` for what makes no sense."""

    refits: Annotated[int, Field(ge=0, description="Refits without a share of the training rows.")] = 5
    left_out: Annotated[float, Field(gt=0, lt=1, description="Share of the rows that such a refit leaves out.")] = 0.1
    seeds: Annotated[int, Field(ge=0, description="Refits with another seed.")] = 3
    one_out: Annotated[int, Field(ge=0, description="Refits without a single row, for small data sets.")] = 0
    densities: Annotated[
        tuple[float, ...],
        Flag(metavar="DENSITY,..."),
        Field(description="With --sweep: the densities to measure, 0.001,0.01."),
    ] = ()
