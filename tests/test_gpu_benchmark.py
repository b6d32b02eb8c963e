from __future__ import annotations

import pytest
import torch

from benchmarks.engine import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script would measure it")
def test_without_a_gpu_the_script_says_what_it_needs_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([])
    output = capsys.readouterr()
    assert "needs an NVIDIA GPU" in output.err and output.out == ""
