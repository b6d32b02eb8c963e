"""The compiler: a process of its own that makes a program of a backbone's forward; `program_cache` starts it.

It exports the base model for any number of rows and tokens (`torch.export`), for mixed passes for any tasks too, and
compiles it ahead of time (Inductor).
The weights are no part of the program: whoever loads it says where they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone import load_backbone
from sparsehub.engine.compiled.mixed_graph import MixedGraph
from sparsehub.engine.compiled.plain_graph import gelus_as_ops, linears_as_ops
from sparsehub.engine.compiled.program_files import ARGUMENTS, LIBRARY, program_ops, write_description
from sparsehub.engine.int8 import int8_linears
from sparsehub.engine.target_modules import TargetModules, find_target_modules
from sparsehub.kernels import library
from sparsehub.kernels.sparse import ADDRESSES

LOWEST_PRIORITY = 19
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
# Sizes of the example, all different; they are free in the program.
_ROWS, _LENGTH, _SLOTS, _BLOCKS, _GROUPS = 3, 24, 6, 7, 11


@dataclass(frozen=True)
class CompilerJob:
    """What the process is asked for, as JSON on its command line."""

    backbone: str  # its folder
    inputs: Sequence[str]  # names of the forward's arguments, each [rows, tokens] int64
    max_tokens: int  # of one sequence
    threads: int  # that the program uses inside one operation
    mixed: bool  # a program of mixed passes, which also takes `ARGUMENTS`
    int8: bool  # whether those run on an int8 base
    ops: bool  # whether it calls our own kernels; one of mixed passes does
    folder: str  # an empty one, for what comes out


class _Positional(nn.Module):
    """A base model whose arguments and results are tensors in a fixed order."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]):
        super().__init__()
        self.module, self.inputs, self.outputs = module, inputs, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        result = self.module(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(result[name] for name in self.outputs)


class _Mixed(_Positional):
    """The same as a mixed pass, whose arguments end with `ARGUMENTS`."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], graph: MixedGraph):
        super().__init__(module, inputs, outputs)
        self.graph = graph

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        own, batch = tensors[: len(self.inputs)], tensors[len(self.inputs) :]
        self.graph.begin(own[0].shape[0], *batch)
        return super().forward(*own)


def export(
    module: Any,
    inputs: Sequence[str],
    max_tokens: int,
    targets: TargetModules | None = None,
    *,
    int8: Collection[int] = (),
    ops: bool = False,
) -> tuple[Any, list[str]]:
    """The base model's graph for any number of rows and tokens, and the names of the tensors that it returns. targets:
    its target modules, for the graph of a mixed pass; int8: those of them that have weights of 8 bits; ops: whether
    the graph of a plain pass calls our own kernels."""
    module.config.use_cache = False
    example = _example(module, inputs)
    with torch.no_grad():
        found = module(**example)
        outputs = [name for name, value in found.items() if isinstance(value, Tensor)]
        axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", max=max_tokens)}
        arguments, shapes = tuple(example.values()), tuple(axes for _ in inputs)
        if targets is None:
            with contextlib.ExitStack() as own:
                for put_on in (linears_as_ops, gelus_as_ops) if ops else ():
                    own.enter_context(put_on(module))
                return _export(_Positional(module, inputs, outputs), arguments, shapes), outputs
        graph = MixedGraph(targets, int8)
        with graph.on_model(), gelus_as_ops(module):
            model = _Mixed(module, inputs, outputs, graph)
            return _export(model, arguments + _example_batch(len(targets.targets)), shapes + _BATCH_AXES), outputs


def _export(model: nn.Module, arguments: tuple[Tensor, ...], shapes: tuple[Any, ...]) -> Any:
    return torch.export.export(model, arguments, dynamic_shapes=(shapes,), strict=False)


_BATCH_AXES = ({1: torch.export.Dim("slots")}, {0: torch.export.Dim("blocks")}, {0: torch.export.Dim("groups")})


def _example_batch(targets: int) -> tuple[Tensor, ...]:
    """`ARGUMENTS` by their shapes alone: nothing reads them while a graph is made."""
    shapes = ((targets, _SLOTS, ADDRESSES), (_BLOCKS, 3), (_GROUPS, 3))
    return tuple(torch.zeros(shape, dtype=torch.int64) for shape in shapes)


def _example(module: Any, inputs: Sequence[str]) -> dict[str, Tensor]:
    ids = torch.randint(module.config.vocab_size, (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: given[name] for name in inputs}


def compile_program(job: CompilerJob) -> None:
    """Write a program and its description into the job's folder."""
    torch.set_num_threads(job.threads)
    backbone = load_backbone(job.backbone)
    targets = find_target_modules(backbone) if job.mixed else None
    int8 = int8_linears(targets) if targets is not None and job.int8 else {}
    program, outputs = export(backbone.module, job.inputs, job.max_tokens, targets, int8=int8, ops=job.ops)
    options: dict[str, Any] = {
        "aot_inductor.package_constants_in_so": False,
        "compile_threads": 1,
        "cpp.threads": job.threads,
    }
    if job.ops:
        options["aot_inductor.custom_ops_to_c_shims"] = _shims()
    with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch  # nothing is left in the user's temporary folder
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(scratch) / "program.pt2"), inductor_configs=options
        )
        _extract_library(Path(package), Path(job.folder) / LIBRARY)
    write_description(Path(job.folder), [*job.inputs, *(ARGUMENTS if job.mixed else ())], outputs)


def _shims() -> dict[Any, list[str]]:
    """Our ops, by which Inductor calls C functions and not torch's dispatcher, and what it declares for each: once, a
    name that nothing uses, after which our own file is included."""
    ops = [getattr(torch.ops.sparsehub, name).default for name in library.OPS]
    return {op: [] for op in ops} | {ops[0]: [f'const int sparsehub_ops;\n#include "{program_ops()}"\n']}


def _extract_library(package: Path, library: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".so")]
        library.write_bytes(archive.read(name))


def main() -> None:
    """Run the job of the command line. Its output is for whoever started it, who shows the last line of it."""
    os.nice(LOWEST_PRIORITY)  # answers go before
    if sys.platform == "linux":  # an engine that is killed leaves no compiler behind
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    job = CompilerJob(**json.loads(sys.argv[1]))
    with contextlib.redirect_stdout(sys.stderr):
        compile_program(job)


if __name__ == "__main__":
    main()
