"""How products in 8 bits are computed: with each instruction set of the machine, or by torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sparsehub.kernels import native_module

INT8_WAYS = (*native_module.INSTRUCTION_SETS, "torch")


def in_use(way: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What a fixture yields from: one of INT8_WAYS in use, afterwards what was before."""
    if way == "torch":
        monkeypatch.setattr("sparsehub.kernels.int8.extension", lambda: None)
        yield way
        return
    if native_module.extension() is None:
        pytest.skip("the native kernels are not built: there was no C++ compiler at install")
    before = native_module.machine()
    if way not in before.available:
        pytest.skip(f"this CPU does not have {way}")
    native_module.choose(way)
    yield way
    native_module.choose(before.instruction_set, before.second_cache)
