"""What tests of kernels share: the instruction sets of the machine, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sparsehub.kernels import native_module


@pytest.fixture(params=native_module.INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the sets, in use; afterwards what was in use before."""
    before = native_module.machine()
    if request.param not in before.available:
        pytest.skip(f"this CPU does not have {request.param}")
    native_module.choose(request.param)
    yield request.param
    native_module.choose(before.instruction_set, before.second_cache)
