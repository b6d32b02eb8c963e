"""The compiler: a process of its own that makes a program of a backbone's forward; `program_cache` starts it.

It exports the base model, or one of its layers, for any number of rows and tokens (`torch.export`), for mixed passes
for any tasks too, and compiles it ahead of time (Inductor).
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
from sparsehub.engine.compiled.layer_graph import export_layer
from sparsehub.engine.compiled.mixed_graph import MixedGraph, example_batch
from sparsehub.engine.compiled.plain_graph import gelus_as_ops, linears_as_ops
from sparsehub.engine.compiled.program_files import (
    ARGUMENTS,
    LAYER,
    LIBRARY,
    PLAIN,
    STATES,
    program_ops,
    write_description,
)
from sparsehub.engine.int8 import int8_linears
from sparsehub.engine.target_modules import TargetModules, find_target_modules
from sparsehub.kernels import library

LOWEST_PRIORITY = 19
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
# Sizes of the example; they are free in the program.
_ROWS, _LENGTH = 3, 24


@dataclass(frozen=True)
class CompilerJob:
    """What the process is asked for, as JSON on its command line."""

    backbone: str  # its folder
    inputs: Sequence[str]  # names of the forward's arguments, each [rows, tokens] int64
    max_tokens: int  # of one sequence
    threads: int  # that the program uses inside one operation
    kind: str  # `PLAIN`, or `MIXED`, which also takes `ARGUMENTS`, or `LAYER`
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
            batch, batch_shapes = example_batch(len(targets.targets))
            return _export(_Mixed(module, inputs, outputs, graph), arguments + batch, shapes + batch_shapes), outputs


def _export(model: nn.Module, arguments: tuple[Tensor, ...], shapes: tuple[Any, ...]) -> Any:
    return torch.export.export(model, arguments, dynamic_shapes=(shapes,), strict=False)


def _example(module: Any, inputs: Sequence[str]) -> dict[str, Tensor]:
    ids = torch.randint(module.config.vocab_size, (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: given[name] for name in inputs}


def compile_program(job: CompilerJob) -> None:
    """Write a program and its description into the job's folder."""
    torch.set_num_threads(job.threads)
    program, inputs, outputs = _graph(job)
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
    write_description(Path(job.folder), inputs, outputs)


def _graph(job: CompilerJob) -> tuple[Any, list[str], list[str]]:
    """What is compiled, and the names of its arguments and results."""
    backbone = load_backbone(job.backbone)
    module: Any = backbone.module
    inputs = job.inputs
    module.config.use_cache = False
    if job.kind == PLAIN:
        program, outputs = export(module, inputs, job.max_tokens, ops=job.ops)
        return program, [*inputs], outputs
    targets = find_target_modules(backbone)
    if job.kind == LAYER:
        return *export_layer(module, targets, job.max_tokens), [STATES]
    int8 = int8_linears(targets) if job.int8 else {}
    program, outputs = export(module, inputs, job.max_tokens, targets, int8=int8, ops=job.ops)
    return program, [*inputs, *ARGUMENTS], outputs


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
