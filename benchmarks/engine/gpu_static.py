"""What the GPU kernels take of a GPU, without one: every launch that the engine can make is compiled ahead of time.

    python -m benchmarks.engine.gpu_static  # all launches for all architectures: results/gpu-static.md

Tests compile all, or the widest of each kernel, and write nothing: `--check all`, `--check few`.

A compiler error, spilled registers or a program that no SM can hold end it with an error.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.harness import Report, Row, write_report
from sparsehub.kernels import triton_ops
from sparsehub.kernels.sparse import ADDRESSES, WIDEST_BLOCK

DTYPES, POSITIONS = ("fp32", "fp16", "bf16"), ("i32", "i64")
TENSORS = {  # of the launch's dtype
    "_gather": ("arena", "out"),
    "_scatter_copy": ("arena", "values"),
    "_scatter_add": ("arena",),
    "_sparse_linear": ("x", "y"),
    "_sparse_prefill": ("features", "y"),
    "_sparse_lookup": ("y",),
    "_scale_shift": ("y",),
}
FIXED = {"values": "*fp32", "table": "*i64", "blocks": "*i64", "ids": "*i64", "slots": "*i32"}  # others are sizes
MOST_LOCAL = 16  # bytes: ptxas puts a few there for itself
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NOTES = (
    "Compiled with no knowledge of alignment, which a launch has and which only helps.",
    "`registers` of a thread, `local` bytes that it spills to memory, `shared` bytes of a program with the system's "
    "own kibibyte; `occupancy`: warps that an SM holds at once, of the 64 that it can, by registers and shared memory.",
    "T: tokens of a block; SHORT: columns in two bytes, else four.",
)


@dataclass(frozen=True)
class Launch:
    """One way in which the engine launches a kernel. dtype: of the arena or the activations; positions: of gather and
    scatter, "" for others; constants: its compile-time arguments."""

    kernel: str
    dtype: str
    positions: str
    constants: tuple[tuple[str, int | bool], ...]

    @property
    def label(self) -> str:
        told = [f"{name}={value}" for name, value in self.constants if name in ("T", "SHORT")]
        return " ".join([self.kernel.strip("_"), self.dtype, self.positions, *told]).replace("  ", " ")


@dataclass(frozen=True)
class Architecture:
    """What a streaming multiprocessor (SM) has. Source: the compute capabilities in the CUDA programming guide."""

    capability: int
    shared: int  # bytes
    registers: int = 65_536
    warps: int = 64
    programs: int = 32


ARCHITECTURES = (Architecture(80, 164 << 10), Architecture(90, 228 << 10), Architecture(100, 228 << 10))


@dataclass(frozen=True)
class Cost:
    """What a compiled launch takes: see NOTES."""

    registers: int
    local: int
    shared: int
    warps: int  # of a program


def launches() -> Iterator[Launch]:
    """All that `triton_ops` can launch."""
    blocks = [1 << power for power in range(WIDEST_BLOCK.bit_length())]
    for dtype in DTYPES:
        for kernel, positions in itertools.product(("_gather", "_scatter_copy", "_scatter_add"), POSITIONS):
            yield Launch(kernel, dtype, positions, (("BLOCK", triton_ops.ENTRIES),))
        for short, tokens in itertools.product((True, False), blocks):
            yield from _linears(dtype, short, tokens)
        for short in (True, False):
            constants = (("FIELDS", ADDRESSES), ("SHORT", short), ("K", triton_ops.SEVERAL))
            yield Launch("_sparse_lookup", dtype, "", constants)
        yield Launch("_scale_shift", dtype, "", (("FIELDS", ADDRESSES), ("W", triton_ops.WIDTH)))


def _linears(dtype: str, short: bool, tokens: int) -> Iterator[Launch]:
    """Fewer than MANY tokens are rounded up to a power of two as well: both kernels have blocks of MANY."""
    ops = triton_ops
    common = (("FIELDS", ADDRESSES), ("SHORT", short))
    if tokens <= ops.MANY:
        few = (("R", ops.ROWS), ("T", tokens), ("K", ops.SEVERAL if tokens == 1 else 1))
        yield Launch("_sparse_linear", dtype, "", (*common, *few))
    if tokens >= ops.MANY:
        many = (("R", ops.NEIGHBOURS), ("T", tokens), ("K", ops.TOGETHER))
        yield Launch("_sparse_prefill", dtype, "", (*common, *many))


def few() -> list[Launch]:
    """The widest of each kernel in bfloat16, or the last where there is no width."""
    return list({launch.kernel: launch for launch in launches() if launch.dtype == "bf16"}.values())


def compiled(launch: Launch, capability: int) -> Cost:
    """Raises what Triton or ptxas raise."""
    function = getattr(triton_ops, launch.kernel)
    constants = dict(launch.constants)
    signature = {name: _type(name, launch) for name in function.arg_names if name not in constants}
    signature |= dict.fromkeys(constants, "constexpr")
    kernel = triton.compile(ASTSource(function, signature, constants), target=GPUTarget("cuda", capability, 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    shared = kernel.metadata.shared + max(1024, found["SHARED"])
    return Cost(found["REG"], found["STACK"] + found["LOCAL"], shared, kernel.metadata.num_warps)


def _type(name: str, launch: Launch) -> str:
    """A parameter's type as a launch gives it."""
    if name == "positions":
        return f"*{launch.positions}"
    if name in TENSORS[launch.kernel]:
        return f"*{launch.dtype}"
    return FIXED.get(name, "i32")


def occupancy(cost: Cost, architecture: Architecture) -> float:
    """Registers are given to warps in pieces of 256."""
    registers = -(-cost.registers * 32 // 256) * 256 * cost.warps
    programs = min(
        architecture.registers // registers,
        architecture.shared // cost.shared,
        architecture.warps // cost.warps,
        architecture.programs,
    )
    return programs * cost.warps / architecture.warps


def measure(launch: Launch, architecture: Architecture) -> Row:
    cost = compiled(launch, architecture.capability)
    share = occupancy(cost, architecture)
    if cost.local > MOST_LOCAL or not share:
        raise RuntimeError(f"{launch.label} on sm_{architecture.capability} spills or does not fit: {cost}")
    columns: Mapping[str, Any] = {
        "registers": cost.registers,
        "local": cost.local,
        "shared": cost.shared,
        "occupancy": f"{share:.0%}",
    }
    return Row(launch.label, {"architecture": f"sm_{architecture.capability}"}, columns)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", choices=("few", "all"))
    check = parser.parse_args(arguments).check
    if triton.knobs.runtime.interpret:
        sys.exit("benchmarks.engine.gpu_static compiles kernels: unset TRITON_INTERPRET")
    warnings.filterwarnings("ignore")
    chosen = few() if check == "few" else list(launches())
    rows = [measure(launch, architecture) for architecture in ARCHITECTURES for launch in chosen]
    checks = [
        f"{len(rows)} kernels were compiled: none keeps over {MOST_LOCAL} bytes in local memory, each fits an SM."
    ]
    if check:
        print(checks[0])
        return
    report = Report("gpu-static", "What the GPU kernels take of a GPU", rows, NOTES, checks)
    print(write_report(report, "1", kind=f"Triton {triton.__version__}"))


if __name__ == "__main__":
    main()
