"""The compiled module of the CPU kernels: whether there is one, and which instruction set it uses.

It is built at install where there is a C++ compiler, and uses the best instruction set of the CPU, or the one that
the environment's `SPARSEHUB_CPU` names. `native` calls it; benchmarks and tests look at it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
from dataclasses import dataclass
from types import ModuleType

from sparsehub.errors import UsageError

INSTRUCTION_SETS = ("plain", "avx2", "avx512")  # in the order of `enum InstructionSet` in cpu.hpp
FORCED = "SPARSEHUB_CPU"
INTERFACE = 1  # of the compiled functions, as in native.cpp: raise both where what a function takes or does changes
log = logging.getLogger("sparsehub")


@dataclass(frozen=True)
class Machine:
    """What the kernels know of the machine that they run on; printed by benchmarks, changed by tests."""

    instruction_set: str  # in use: one of INSTRUCTION_SETS
    available: tuple[str, ...]  # those that the CPU has
    second_cache: int  # bytes of a core's second-level cache: how many tokens are packed together follows from it


@functools.cache
def extension() -> ModuleType | None:
    """The compiled module, or None where it was not built or is of another build.

    Raises `UsageError` where `SPARSEHUB_CPU` cannot be had.
    """
    try:
        module = importlib.import_module("sparsehub.kernels._native")
    except ImportError:
        log.warning("the native kernels are not built, torch's are used; install sparsehub again with a C++ compiler")
        return None
    if getattr(module, "INTERFACE", 0) != INTERFACE:
        log.warning("the native kernels are of another build, torch's are used; install sparsehub again")
        return None
    if forced := os.environ.get(FORCED):
        _choose(module, forced)
    return module


def exports() -> bool:
    """Whether programs that are loaded from now on find the kernels as plain C functions (`exported.hpp`)."""
    module = extension()
    if module is None or module.__file__ is None:
        return False
    try:
        return hasattr(ctypes.CDLL(module.__file__, ctypes.RTLD_GLOBAL), "sparsehub_shared_linear")
    except OSError:
        return False


def machine() -> Machine:
    """The machine, and what is in use of it."""
    used, there, second_cache = module_of_kernels().machine()
    available = tuple(name for name, has in zip(INSTRUCTION_SETS, there, strict=True) if has)
    return Machine(INSTRUCTION_SETS[used], available, second_cache)


def choose(instruction_set: str, second_cache: int | None = None) -> None:
    """Use another instruction set from now on, or another size of the second cache (bytes) than the machine's.

    For tests and benchmarks, while no kernel runs. Raises `UsageError` where the CPU does not have it.
    """
    _choose(module_of_kernels(), instruction_set, second_cache)


def _choose(module: ModuleType, instruction_set: str, second_cache: int | None = None) -> None:
    _, there, known = module.machine()
    available = [name for name, has in zip(INSTRUCTION_SETS, there, strict=True) if has]
    if instruction_set not in available:
        expected = f"one of those that this CPU has: {', '.join(available)}"
        raise UsageError("the kernels cannot use this instruction set", found=instruction_set, expected=expected)
    module.choose(INSTRUCTION_SETS.index(instruction_set), known if second_cache is None else second_cache)


def module_of_kernels() -> ModuleType:
    """The compiled module where it is known to be there."""
    module = extension()
    assert module is not None  # `sparsehub.kernels` calls these functions only where `takes` is True
    return module
