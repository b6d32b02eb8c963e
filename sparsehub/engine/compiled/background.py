"""Compilation beside serving: a thread that finds or makes a program, proves and measures it, and puts it to use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sparsehub.backbone import Backbone
from sparsehub.backbone.tokenizer import max_tokens
from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.batch_planner import BatchPlanner
from sparsehub.engine.calibrate import FORWARDS, LONG, REPEATS
from sparsehub.engine.compiled.mixed_graph import why_no_graph
from sparsehub.engine.compiled.mixed_pass import MixedPass
from sparsehub.engine.compiled.plain_pass import CompiledPass, PlainPass
from sparsehub.engine.compiled.program import Program
from sparsehub.engine.compiled.program_cache import find_or_compile
from sparsehub.engine.compiled.proof import SHAPES, TrialTasks, compare, compare_changed, measure, sizes, trial_tasks
from sparsehub.engine.cost_model import SWAP, CompiledCurve
from sparsehub.engine.target_modules import TargetModules
from sparsehub.errors import SparsehubError, UsageError
from sparsehub.kernels import native_module

AUTO, ON, OFF = "auto", "on", "off"
COMPILE_MODES = (AUTO, ON, OFF)
SMALLEST = 1_000_000  # entries of a backbone that `auto` compiles: the passes of smaller ones are short in any way
LARGEST = 4 << 30  # bytes of one that it compiles: the compiler's process loads it too
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_STOP_SECONDS = 10.0
log = logging.getLogger("sparsehub")


class BackgroundCompiler:
    """Makes an engine's plain passes compiled ones while the eager ones answer, then its mixed passes; `Engine` starts
    and stops it.

    mode: `auto` uses a program where it was faster, `on` everywhere, `off` makes none; `UsageError` for another.
    """

    def __init__(
        self,
        backbone: Backbone,
        targets: TargetModules,
        arena: ArenaManager,
        planner: BatchPlanner,
        tokenizer: Any,
        mode: str,
    ):
        if mode not in COMPILE_MODES:
            raise UsageError("unknown way of compiling", found=mode, expected=", ".join(COMPILE_MODES))
        self.plain, self.mixed = PlainPass(backbone), MixedPass(backbone)
        self._backbone, self._targets, self._arena = backbone, targets, arena
        self._planner, self._mode = planner, mode
        self._inputs, self._max_tokens = tuple(tokenizer.model_input_names), max_tokens(tokenizer, backbone.config)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sparsehub-compiler", daemon=True)

    def start(self) -> None:
        """Begin in a thread of its own, unless the mode is `off` or nothing would come of it."""
        if self._mode == OFF:
            return
        if (reason := self._why_not()) is None:
            self._thread.start()
        else:
            log.log(logging.WARNING if self._mode == ON else logging.INFO, "passes stay eager: %s", reason)

    def stop(self) -> None:
        """End the compiler's process, where it runs."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until programs are in use or given up; whether one is in use: of plain passes, or of
        mixed ones where every batch is mixed."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return (self.mixed if self._planner.only_mixed else self.plain).compiled is not None

    def _why_not(self) -> str | None:
        backbone = self._backbone
        if backbone.device.type != "cpu" or {b.dtype for b in backbone.arena.buffers.values()} != {torch.float32}:
            return "only those in float32 on a CPU are compiled"
        if self._targets.packed is not None:
            return f"those on {self._targets.packed.weights} weights are not compiled"
        if unknown := set(self._inputs) - set(_INPUTS):
            return f"its tokenizer gives {', '.join(sorted(unknown))}"
        if self._mode == AUTO and not (backbone.arena.numel >= SMALLEST and backbone.arena.nbytes <= LARGEST):
            return f"a backbone of {backbone.arena.numel:,} entries is compiled only when asked for"
        return None

    def _why_not_mixed(self) -> str | None:
        if self._planner.mode == SWAP and not self._planner.only_mixed:
            return "no batch is mixed"
        if not native_module.exports():
            return "the native kernels are not built, or of an older build"
        return why_no_graph(self._targets)

    def _run(self) -> None:
        try:
            if not self._planner.only_mixed:
                self._install_plain()
        except Exception as error:  # whatever went wrong: the eager pass goes on
            self._report("passes", error)
            return
        if (reason := self._why_not_mixed()) is not None:
            log.info("mixed passes stay eager: %s", reason)
            return
        try:
            self._install_mixed()
        except Exception as error:  # the same
            self._report("mixed passes", error)

    def _report(self, what: str, error: Exception) -> None:
        if not self._stopped.is_set():
            problem = str(error) if isinstance(error, SparsehubError) else f"{type(error).__name__}: {error}"
            log.warning("%s stay eager: %s", what, problem)

    def _install_plain(self) -> None:
        compiled = self._compiled(None)
        with self._arena.lock:
            self.plain.compiled, self._planner.costs.compiled = compiled, compiled.curve
        log.info("compiled passes are ready; what they take of the eager ones: %s", compiled.curve)

    def _install_mixed(self) -> None:
        with self._arena.lock:
            self._arena.swap.to(None)
            tasks = trial_tasks(self._backbone, self._targets)
        compiled = self._compiled(tasks)
        with self._arena.lock:
            self.mixed.compiled, self._planner.costs.compiled_mixed = compiled, compiled.curve
        log.info("compiled mixed passes are ready; what they take of the eager ones: %s", compiled.curve)

    def _compiled(self, tasks: TrialTasks | None) -> CompiledPass:
        """A program, proved and measured. tasks: for mixed passes."""
        mixed = tasks is not None
        int8 = self._targets.int8 is not None
        files = find_or_compile(self._backbone, self._inputs, self._max_tokens, self._stopped, mixed=mixed, int8=int8)
        module = self._backbone.module
        weights = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
        program = Program(files, weights)
        result = self._proved(program, tasks)
        return CompiledPass(program, result, CompiledCurve(self._measured(program, tasks), always=self._mode == ON))

    def _proved(self, program: Program, tasks: TrialTasks | None) -> Any:
        """The class of what the base model returns. The lock is free between two batches, since requests wait."""
        result: Any = None
        for rows, length in sizes(SHAPES, self._max_tokens):
            with self._in_order(tasks):
                result = compare(self._backbone, program, rows, length, tasks)
        with self._arena.lock:
            self._arena.swap.to(None)
            compare_changed(self._backbone, program, tasks)
        return result

    @contextmanager
    def _in_order(self, tasks: TrialTasks | None) -> Iterator[None]:
        """Inside, the arena holds what a trial runs on: mixed passes do on the base weights."""
        with self._arena.lock:
            if tasks is not None:
                self._arena.swap.to(None)
            yield

    def _measured(self, program: Program, tasks: TrialTasks | None) -> list[tuple[int, float]]:
        """(tokens, compiled / eager) of a few sizes."""
        shapes = sizes(FORWARDS, self._max_tokens)
        return [(rows * length, self._ratio(program, rows, length, tasks)) for rows, length in shapes]

    def _ratio(self, program: Program, rows: int, length: int, tasks: TrialTasks | None) -> float:
        """The best of a few runs of either pass, in turn."""
        pairs: list[tuple[float, float]] = []
        while len(pairs) < REPEATS and not (pairs and sum(pairs[-1]) > LONG):
            with self._in_order(tasks):
                pairs.append(measure(self._backbone, program, rows, length, tasks))
        compiled, eager = zip(*pairs, strict=True)
        return min(compiled) / min(eager)
