"""The native kernels with each instruction set, and with every number of tokens together, against the reference."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

from sparsehub.errors import UsageError
from sparsehub.kernels import Map, ScaleShift, changes_of, native, native_module, reference, segments_of
from tests.kernels.test_sparse import POPULARITY, bounds_of, compare, every_kind_of_change

SIZES = [(7, 13), (24, 200), (130, 67)]
# bytes of the second cache, of which half holds packed tokens: 32 of any size, 16 of 130 columns, 8
CACHES = [1 << 30, 2 * 16 * 130 * 4, 0]

pytestmark = pytest.mark.skipif(native_module.extension() is None, reason="the native kernels are not built")


@pytest.mark.parametrize("second_cache", CACHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_with_each_set(instruction_set: str, dtype: torch.dtype, second_cache: int) -> None:
    """Fresh sums, added ones, and those of tokens that are made of others."""
    native_module.choose(instruction_set, second_cache)
    assert native_module.machine().instruction_set == instruction_set
    generator = torch.Generator().manual_seed(3)
    for popularity in (POPULARITY[name] for name in ("zipf", "identical")):
        for inside, out in SIZES:
            bounds, tokens = bounds_of(popularity)
            segments = segments_of(bounds)
            changes = changes_of([every_kind_of_change(inside, out, slot) for slot in range(9)])
            x = torch.randn(tokens, inside, generator=generator).to(dtype)
            weight, bias = torch.randn(inside, out, generator=generator).to(dtype), torch.randn(out).to(dtype)
            (found,) = native.linear(x, [Map(weight, bias, changes)], segments)
            (expected,) = reference.linear(x, [Map(weight, bias, changes)], segments)
            scale = expected.abs().max().clamp(min=1)  # sums of many terms: to the size of the largest
            compare(found / scale, expected / scale)
            native.sparse_linear_(found, x, segments, changes)
            reference.sparse_linear_(expected, x, segments, changes)
            compare(found / scale, expected / scale)
            rows = torch.randint(tokens, (tokens,), generator=generator)
            (found,) = native.shared_linear(x, rows, [expected], [changes], segments)
            (expected,) = reference.shared_linear(x, rows, [expected], [changes], segments)
            compare(found / scale, expected / scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_with_each_set(instruction_set: str, dtype: torch.dtype) -> None:
    assert native_module.machine().instruction_set == instruction_set
    bounds, tokens = bounds_of(POPULARITY["zipf"])
    segments = segments_of(bounds)
    for width in (1, 7, 16, 33, 100):
        x, weights = (torch.randn(tokens, width) + 30).to(dtype), torch.randn(7, width)
        biased = changes_of([ScaleShift(weight, torch.randn(width)) for weight in weights])
        bare = changes_of([ScaleShift(weight) for weight in weights])
        compare(native.layer_norm(x, segments, biased, 1e-5), reference.layer_norm(x, segments, biased, 1e-5))
        compare(native.rms_norm(x, segments, bare, 1e-5), reference.rms_norm(x, segments, bare, 1e-5))
        found, expected = x.clone(), x.clone()
        native.scale_shift_(found, segments, biased)
        reference.scale_shift_(expected, segments, biased)
        compare(found, expected)


def test_the_environment_forces_a_set(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module reads it once, when it is loaded."""
    native_module.choose("plain")
    monkeypatch.setenv(native_module.FORCED, instruction_set)
    native_module.extension.cache_clear()
    assert native_module.extension() is not None and native_module.machine().instruction_set == instruction_set


@pytest.mark.parametrize("forced", ["avx1024", "neon"])
def test_a_set_that_the_machine_lacks_is_refused(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_module.FORCED, forced)
    native_module.extension.cache_clear()
    with pytest.raises(UsageError, match=f"found: {forced}; expected: one of those that this CPU has: plain"):
        native_module.extension()


def test_a_module_of_another_build_is_not_called(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its functions may take other arguments."""
    monkeypatch.setattr(native_module, "INTERFACE", native_module.INTERFACE + 1)
    native_module.extension.cache_clear()
    try:
        assert native_module.extension() is None and not native.takes(torch.zeros(1)) and not native_module.exports()
        assert "install sparsehub again" in caplog.text
    finally:
        native_module.extension.cache_clear()


def test_the_kernels_compile_for_arm64() -> None:
    """Where there is a cross compiler; the wheel for arm64 is built and tested on its own machine."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no compiler for arm64: apt-get install g++-aarch64-linux-gnu")
    source = Path(native.__file__).with_name("native.cpp")
    includes = f"-I{sysconfig.get_paths()['include']}"
    options = ["-fsyntax-only", "-std=c++17", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    done = subprocess.run(
        [compiler, *options, "-DPy_LIMITED_API=0x030B0000", includes, str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
