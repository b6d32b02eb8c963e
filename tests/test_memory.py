"""What becomes of freed memory, by the page faults of a process that allocates the same again and again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from sparsehub.memory import keep_freed_memory, return_freed_memory, trim_memory

def faults(times=20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        blocks = [torch.empty(2 << 20).fill_(1.0) for _ in range(3)]  # of 8 MiB
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:"))

torch.set_num_threads(1)
for how in (keep_freed_memory, return_freed_memory, keep_freed_memory):
    how()
    faults(5)
    print(faults())
kept = resident()
trim_memory()
print(kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose malloc it is about")
def test_an_engine_keeps_what_training_returns_and_it_can_be_trimmed() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, returned, again, trimmed = map(int, run.stdout.split())
    pages = 20 * 3 * (8 << 20) // 4096  # of all blocks, if each were new
    assert kept < pages // 10 and again < pages // 10 and trimmed > 10 << 10  # KiB
    assert returned > 20 * 3  # where pages are huge, one fault is 2 MiB
