"""Compilation beside serving: a thread that finds or makes a program, proves and measures it, and puts it to use."""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch

from sparsehub.backbone import Backbone
from sparsehub.backbone.tokenizer import max_tokens
from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.batch_planner import BatchPlanner
from sparsehub.engine.calibrate import FORWARDS, LONG, REPEATS
from sparsehub.engine.compiled.plain_pass import CompiledPass, PlainPass
from sparsehub.engine.compiled.program import Program
from sparsehub.engine.compiled.program_cache import find_or_compile
from sparsehub.engine.compiled.proof import SHAPES, compare, compare_changed, measure, sizes
from sparsehub.engine.cost_model import CompiledCurve
from sparsehub.errors import SparsehubError, UsageError

AUTO, ON, OFF = "auto", "on", "off"
COMPILE_MODES = (AUTO, ON, OFF)
SMALLEST = 1_000_000  # entries of a backbone that `auto` compiles: the passes of smaller ones are short in any way
LARGEST = 4 << 30  # bytes of one that it compiles: the compiler's process loads it too
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_STOP_SECONDS = 10.0
log = logging.getLogger("sparsehub")


class BackgroundCompiler:
    """Makes an engine's plain pass a compiled one while the eager one answers; `Engine` starts and stops it.

    mode: `auto` uses the program where it was faster, `on` everywhere, `off` makes none; `UsageError` for another.
    """

    def __init__(self, backbone: Backbone, arena: ArenaManager, planner: BatchPlanner, tokenizer: Any, mode: str):
        if mode not in COMPILE_MODES:
            raise UsageError("unknown way of compiling", found=mode, expected=", ".join(COMPILE_MODES))
        self.plain = PlainPass(backbone)
        self._backbone, self._arena, self._planner, self._mode = backbone, arena, planner, mode
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
        """Wait until a program is in use or given up; whether one is in use."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return self.plain.compiled is not None

    def _why_not(self) -> str | None:
        backbone = self._backbone
        if self._planner.only_mixed:
            return "batches on int8 weights run mixed"
        if backbone.device.type != "cpu" or {b.dtype for b in backbone.arena.buffers.values()} != {torch.float32}:
            return "only those in float32 on a CPU are compiled"
        if unknown := set(self._inputs) - set(_INPUTS):
            return f"its tokenizer gives {', '.join(sorted(unknown))}"
        if self._mode == AUTO and not (backbone.arena.numel >= SMALLEST and backbone.arena.nbytes <= LARGEST):
            return f"a backbone of {backbone.arena.numel:,} entries is compiled only when asked for"
        return None

    def _run(self) -> None:
        try:
            self._install()
        except Exception as error:  # whatever went wrong: the eager pass goes on
            if not self._stopped.is_set():
                problem = str(error) if isinstance(error, SparsehubError) else f"{type(error).__name__}: {error}"
                log.warning("passes stay eager: %s", problem)

    def _install(self) -> None:
        files = find_or_compile(self._backbone, self._inputs, self._max_tokens, self._stopped)
        module = self._backbone.module
        weights = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
        program = Program(files, weights)
        result = self._proved(program)
        curve = CompiledCurve(self._measured(program), always=self._mode == ON)
        with self._arena.lock:
            self.plain.compiled = CompiledPass(program, result, curve)
            self._planner.costs.compiled = curve
        figures = ", ".join(f"{ratio:.2f} at {tokens} tokens" for tokens, ratio in curve.points)
        log.info("compiled passes are ready; what they take of the eager ones: %s", figures)

    def _proved(self, program: Program) -> Any:
        """The class of what the base model returns. The lock is free between two batches, since requests wait."""
        result: Any = None
        for rows, length in sizes(SHAPES, self._max_tokens):
            with self._arena.lock:
                result = compare(self._backbone, program, rows, length)
        with self._arena.lock:
            self._arena.swap.to(None)
            compare_changed(self._backbone, program)
        return result

    def _measured(self, program: Program) -> list[tuple[int, float]]:
        """(tokens, compiled / eager) of a few sizes."""
        return [
            (rows * length, self._ratio(program, rows, length)) for rows, length in sizes(FORWARDS, self._max_tokens)
        ]

    def _ratio(self, program: Program, rows: int, length: int) -> float:
        """The best of a few runs of either pass, in turn."""
        pairs: list[tuple[float, float]] = []
        while len(pairs) < REPEATS and not (pairs and sum(pairs[-1]) > LONG):
            with self._arena.lock:
                pairs.append(measure(self._backbone, program, rows, length))
        compiled, eager = zip(*pairs, strict=True)
        return min(compiled) / min(eager)
