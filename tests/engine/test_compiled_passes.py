"""Compiled passes: made beside serving, proved, and equal to eager ones whatever is in the arena."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub import Engine
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.engine.compiled import program_cache
from sparsehub.engine.compiled.plain_pass import CompiledPass, PlainPass
from sparsehub.engine.compiled.proof import compare, compare_changed, sample
from sparsehub.engine.cost_model import SWAP, CalibrationPoints, CompiledCurve, CostModel, RowGroup
from sparsehub.errors import EngineError, UsageError

PATIENCE = 540.0  # seconds for the compiler on a busy machine
TEXTS = ["one two three", "four", "five six seven eight nine ten", "two two"]


@pytest.fixture
def backbone(tiny_checkpoint: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(tiny_checkpoint("bert")))


def vectors(engine: Engine) -> Tensor:
    return torch.tensor([future.result(60) for future in engine.embed(None, TEXTS).futures])


class _Fake:
    """A program that runs a module of its own, and may add something to what it returns."""

    def __init__(self, module: Any, error: float = 0.0):
        self.inputs, self.outputs = ("input_ids", "attention_mask", "token_type_ids"), ("last_hidden_state",)
        self._module, self._error = module, error

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self._module(**inputs)
        return {name: value + self._error for name, value in found.items() if isinstance(value, Tensor)}


def test_a_program_is_refused_that_is_wrong_or_does_not_see_the_arena_change(backbone: Backbone) -> None:
    base = backbone.arena.digest()
    right: Any = _Fake(backbone.module)
    assert compare(backbone, right, 1, 2).__name__ == "BaseModelOutputWithPoolingAndCrossAttentions"
    compare_changed(backbone, right)
    for error in (1e-3, float("nan")):
        wrong: Any = _Fake(backbone.module, error)
        with pytest.raises(EngineError, match="a compiled pass is wrong: last_hidden_state of 1 x 2"):
            compare(backbone, wrong, 1, 2)
    copied: Any = _Fake(copy.deepcopy(backbone.module))
    compare(backbone, copied, 1, 2)
    with pytest.raises(EngineError, match="a compiled pass is wrong"):
        compare_changed(backbone, copied)
    assert backbone.arena.digest() == base


def test_a_program_that_fails_is_used_no_more(backbone: Backbone, caplog: Any) -> None:
    class Failing(_Fake):
        def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            raise EngineError("a compiled program failed")

    plain, program = PlainPass(backbone), Failing(backbone.module)
    batch = sample(backbone, program, 3, 5)  # type: ignore[arg-type]
    plain.compiled = CompiledPass(program, dict, CompiledCurve([(8, 0.5)]))  # type: ignore[arg-type]
    with torch.inference_mode():
        expected = backbone.module(**batch).last_hidden_state
        assert torch.equal(plain(batch).last_hidden_state, expected)
    assert plain.compiled is None and "passes are eager from here on" in caplog.text


def test_auto_uses_a_program_where_it_was_faster_and_on_everywhere() -> None:
    points = [(8, 0.5), (32, 0.7), (512, 1.3)]
    auto, always = CompiledCurve(points), CompiledCurve(points, always=True)
    assert [auto.used(tokens) for tokens in (2, 8, 32, 512, 9999)] == [True, True, True, False, False]
    assert all(always.used(tokens) for tokens in (2, 8, 512, 9999))
    assert (auto.ratio(8), auto.ratio(512), always.ratio(512)) == (0.5, 1.0, 1.3)
    assert not CompiledCurve().used(8) and CompiledCurve().ratio(8) == 1.0
    costs = CostModel(CalibrationPoints([(8, 0.01), (512, 0.1)], [(10, 0.0), (20, 0.0)], []))
    eager = costs.predict(SWAP, [RowGroup(8, 0, 1, 8)])
    costs.compiled = auto
    assert costs.predict(SWAP, [RowGroup(8, 0, 1, 8)]) == pytest.approx(eager / 2)


def test_without_a_compiler_passes_stay_eager_with_one_line(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with Engine(load_backbone(str(tiny_checkpoint("bert"))), compile_mode="on") as engine:
        assert not engine.compiler.join(PATIENCE)
        assert len(vectors(engine)) == len(TEXTS)
        assert engine.compiler.mixed.compiled is None and engine.compiler.layers.compiled is None
    assert [r.levelname for r in caplog.records if "stay eager" in r.message] == ["WARNING"]
    assert "there is no C++ compiler" in caplog.text
    assert list((tmp_path / "compiled").glob("*")) == [] if (tmp_path / "compiled").exists() else True


def test_a_compiler_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho working >&2\necho 'no space left' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(program_cache.sys, "executable", str(python))
    monkeypatch.setattr(program_cache.shutil, "which", lambda _: "/bin/true")
    with pytest.raises(EngineError, match="the compiler failed; found: no space left"):
        program_cache._compile(tmp_path / "cache" / "made", {}, threading.Event())
    assert list((tmp_path / "cache").iterdir()) == []


def test_programs_may_come_before_an_engine_has_started(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """What batches cost is measured under the arena's lock, and so must not be asked for under it."""
    compiler = Engine(backbone, compile_mode="on").compiler
    program: Any = _Fake(backbone.module)
    monkeypatch.setattr(compiler, "_compiled", lambda _: CompiledPass(program, dict, CompiledCurve()))
    installing = threading.Thread(target=compiler._install_plain, daemon=True)
    installing.start()
    installing.join(120)
    assert not installing.is_alive() and compiler.plain.compiled is not None


def test_stopping_ends_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_cache.shutil, "which", lambda _: "/bin/true")
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(EngineError, match="the engine stopped"):
        program_cache._compile(tmp_path / "made", {}, stopped)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_others_could_have_written_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "compiled" / "key"
    folder.mkdir(parents=True)
    program_cache._refuse_strangers(folder)
    folder.chmod(0o777)
    with pytest.raises(EngineError, match="can be written by others"):
        program_cache._refuse_strangers(folder)


def test_auto_leaves_small_backbones_alone_and_another_mode_is_refused(
    tiny_checkpoint: Callable[[str], Path], caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "sparsehub")
    with Engine(load_backbone(str(tiny_checkpoint("bert"))), compile_mode="auto") as engine:
        assert not engine.compiler.join(PATIENCE)
    assert "is compiled only when asked for" in caplog.text
    with pytest.raises(UsageError, match="unknown way of compiling"):
        Engine(engine.backbone, compile_mode="always")
