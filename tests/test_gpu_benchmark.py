from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.modeling_utils  # noqa: F401 - it reads classes that the test stands in for

from benchmarks.engine import gpu
from sparsehub.engine import packed_matrix
from sparsehub.kernels import native
from tests.support.fake_gpu import fake_gpu
from tests.support.fake_streams import GPU
from tests.support.packed_weights import PlainWeight

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script would measure it")


def test_without_a_gpu_the_script_says_what_it_needs_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([])
    output = capsys.readouterr()
    assert "needs an NVIDIA GPU" in output.err and output.out == ""


class Event:
    """Stands for `torch.cuda.Event`."""

    def __init__(self, *, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        """Note the time."""

    def elapsed_time(self, _: Event) -> float:
        """Milliseconds from one to the other."""
        return 1.0


class Thread:
    """Stands for a thread that has no time to do anything."""

    def __init__(self, *, target: Any):
        self.start, self.join = (lambda: None), target


def test_the_whole_script_runs_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is not there, with the smallest shape: where two devices meet, or streams that do not wait, it fails."""
    reports: list[Any] = []
    monkeypatch.setattr(gpu, "write_report", lambda report, *_, **named: reports.append(report) or named["kind"])
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "PACKERS", ["fp8"])
    monkeypatch.setitem(packed_matrix.PACKERS, "fp8", PlainWeight)
    monkeypatch.setattr(native, "takes", lambda arena: False)  # the arena in host memory has no bytes either
    monkeypatch.setattr(gpu, "threading", SimpleNamespace(Thread=Thread, Event=gpu.threading.Event))
    with fake_gpu(monkeypatch) as fake:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 30, 1 << 31))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        gpu.main(["--shape", "tiny"])
        model = gpu.make_model("tiny", GPU)
        assert gpu.beside(model, 0).segments[0].base.device == GPU
    (report,) = reports
    assert [row.case for row in report.rows][:5] == ["switch", "plain", "mixed", "plain, graph", "mixed, graph"]
    quantised = ["fp8", "fp8, mixed", "fp8, graph", "fp8, mixed, graph"]
    assert [row.case for row in report.rows][-8:-4] == quantised and report.rows[-5].measured["MiB"] >= 0
    engine = ["engine, plain", "engine, plain, graph", "engine, mixed", "engine, mixed, graph"]
    assert [row.case for row in report.rows][-4:] == engine
    assert {"_scatter_add", "_scatter_copy", "_sparse_linear", "_gather"} <= set(fake.launched)
    assert capsys.readouterr().out == "a GPU\n"
