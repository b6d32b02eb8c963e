"""Compilation beside serving: a thread that finds or makes a program, proves and measures it, and puts it to use."""

from __future__ import annotations

import dataclasses
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
from sparsehub.engine.compiled.layer_call import LayerCall, watch_layer
from sparsehub.engine.compiled.layer_programs import CompiledLayers, LayerPasses, load_layers, weights_of
from sparsehub.engine.compiled.layer_proof import measure_layers, right_changed, right_layers
from sparsehub.engine.compiled.mixed_graph import why_no_graph
from sparsehub.engine.compiled.mixed_pass import MixedPass
from sparsehub.engine.compiled.plain_pass import CompiledPass, PlainPass
from sparsehub.engine.compiled.program import Program
from sparsehub.engine.compiled.program_cache import find_or_compile
from sparsehub.engine.compiled.program_files import LAYER, MIXED, PLAIN
from sparsehub.engine.compiled.proof import SHAPES, TrialTasks, compare, compare_changed, measure, sizes, trial_tasks
from sparsehub.engine.cost_model import MIXED as MIXED_MODE
from sparsehub.engine.cost_model import SWAP, CompiledCurve
from sparsehub.engine.target_modules import TargetModules
from sparsehub.errors import EngineError, SparsehubError, UsageError
from sparsehub.kernels import native_module

AUTO, ON, OFF = "auto", "on", "off"
COMPILE_MODES = (AUTO, ON, OFF)
SMALLEST = 1_000_000  # entries of a backbone that `auto` compiles: the passes of smaller ones are short in any way
LARGEST = 4 << 30  # bytes of one that it compiles: the compiler's process loads it too
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_STOP_SECONDS = 10.0
log = logging.getLogger("sparsehub")


class BackgroundCompiler:
    """Makes an engine's plain passes compiled ones while the eager ones answer, then its mixed passes, then the layers
    of its trunks; `Engine` starts and stops it.

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
        self.plain, self.mixed, self.layers = PlainPass(backbone), MixedPass(backbone), LayerPasses()
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

    def _layer_call(self) -> LayerCall | str:
        """How the layers of trunks and branches are called; or why none is compiled."""
        layers = self._targets.layers
        if layers is None or self._planner.only_mixed or self._planner.mode == MIXED_MODE:
            return self._targets.why_no_trunk or "no batch runs so"
        try:
            with self._arena.lock:
                return watch_layer(self._backbone.module, layers)[0]
        except EngineError as error:
            return str(error)

    def _run(self) -> None:
        """Where one kind of passes goes wrong, its eager ones and those of the kinds after it go on."""
        what = "passes"
        try:
            if not self._planner.only_mixed:
                self._install_plain()
            what = "mixed passes"
            if (reason := self._why_not_mixed()) is not None:
                log.info("%s stay eager: %s", what, reason)
                return
            self._install_mixed()
            what = "trunks and branches"
            if isinstance(call := self._layer_call(), str):
                log.info("%s stay eager: %s", what, call)
                return
            self._install_layers(call)
        except Exception as error:
            if not self._stopped.is_set():
                problem = str(error) if isinstance(error, SparsehubError) else f"{type(error).__name__}: {error}"
                log.warning("%s stay eager: %s", what, problem)

    def _install_plain(self) -> None:
        compiled, costs = self._compiled(None), self._planner.costs  # measured now, not under the lock
        with self._arena.lock:
            self.plain.compiled, costs.compiled = compiled, compiled.curve
        log.info("compiled passes are ready; what they take of the eager ones: %s", compiled.curve)

    def _install_mixed(self) -> None:
        with self._arena.lock:
            self._arena.swap.to(None)
            tasks = trial_tasks(self._backbone, self._targets)
        compiled, costs = self._compiled(tasks), self._planner.costs
        with self._arena.lock:
            self.mixed.compiled, costs.compiled_mixed = compiled, compiled.curve
        log.info("compiled mixed passes are ready; what they take of the eager ones: %s", compiled.curve)

    def _install_layers(self, call: LayerCall) -> None:
        stack = self._targets.layers
        assert stack is not None  # or there would be no call
        files = find_or_compile(self._backbone, self._inputs, self._max_tokens, self._stopped, kind=LAYER)
        with self._in_order(True):
            tasks = trial_tasks(self._backbone, self._targets)
        layers = self._proved_layers(load_layers(files, self._targets, stack, call), tasks)
        trunk, branches = self._curve(layers, None), self._curve(layers, tasks)
        layers = dataclasses.replace(layers, trunk=trunk, branches=branches)
        costs = self._planner.costs
        with self._arena.lock:
            self.layers.compiled = layers
            costs.compiled_trunk, costs.compiled_branches = trunk, branches
        log.info("compiled layers are ready; what they take of the eager ones: %s; in branches %s", trunk, branches)

    def _proved_layers(self, layers: CompiledLayers, tasks: TrialTasks) -> CompiledLayers:
        """Those that are right; raises `EngineError` where there are none."""
        right = set(layers.programs)
        for rows, length in sizes(SHAPES, self._max_tokens):
            with self._in_order(True):
                right &= right_layers(self._backbone, layers, rows, length, tasks)
        with self._in_order(True):
            right &= right_changed(self._backbone, layers, tasks)
        if not right:
            raise EngineError("a compiled layer is wrong")
        return dataclasses.replace(layers, programs={index: layers.programs[index] for index in sorted(right)})

    def _compiled(self, tasks: TrialTasks | None) -> CompiledPass:
        """A program, proved and measured. tasks: for mixed passes."""
        int8, kind = self._targets.int8 is not None, PLAIN if tasks is None else MIXED
        files = find_or_compile(self._backbone, self._inputs, self._max_tokens, self._stopped, kind=kind, int8=int8)
        program = Program(files, weights_of(self._backbone.module))
        result = self._proved(program, tasks)
        return CompiledPass(program, result, self._curve(program, tasks))

    def _proved(self, program: Program, tasks: TrialTasks | None) -> Any:
        """The class of what the base model returns. The lock is free between two batches, since requests wait."""
        result: Any = None
        for rows, length in sizes(SHAPES, self._max_tokens):
            with self._in_order(tasks is not None):
                result = compare(self._backbone, program, rows, length, tasks)
        with self._arena.lock:
            self._arena.swap.to(None)
            compare_changed(self._backbone, program, tasks)
        return result

    @contextmanager
    def _in_order(self, base: bool) -> Iterator[None]:
        """Inside, the arena holds what a trial runs on. base: the base weights, as mixed passes do."""
        with self._arena.lock:
            if base:
                self._arena.swap.to(None)
            yield

    def _curve(self, compiled: Program | CompiledLayers, tasks: TrialTasks | None) -> CompiledCurve:
        """What it takes of the eager ones at each size: the best of a few runs, of which a long one is not repeated."""
        points = []
        for rows, length in sizes(FORWARDS, self._max_tokens):
            runs: list[tuple[float, float]] = []
            while len(runs) < REPEATS and (not runs or sum(runs[-1]) <= LONG):
                runs.append(self._seconds(compiled, tasks, rows, length))
            its, eager = zip(*runs, strict=True)
            points.append((rows * length, min(its) / min(eager)))
        return CompiledCurve(points, always=self._mode == ON)

    def _seconds(
        self, compiled: Program | CompiledLayers, tasks: TrialTasks | None, rows: int, length: int
    ) -> tuple[float, float]:
        """Of one compiled run and one eager one."""
        with self._in_order(tasks is not None or isinstance(compiled, CompiledLayers)):
            if isinstance(compiled, Program):
                return measure(self._backbone, compiled, rows, length, tasks)
            return measure_layers(self._backbone, compiled, rows, length, tasks)
