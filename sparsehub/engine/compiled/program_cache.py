"""Programs on disk, by what they depend on: one is compiled once for a machine, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import sparsehub
from sparsehub.backbone import Backbone
from sparsehub.engine.compiled.program_files import PLAIN, ProgramFiles, program_ops, read_program
from sparsehub.errors import EngineError, UsageError
from sparsehub.files import cache_root, canonical_json, new_folder, sha256_bytes, sha256_file
from sparsehub.kernels import native_module

COMPILE_SECONDS = 1800.0  # a busy machine takes long at the lowest priority
_LOOK_SECONDS = 0.2
_COMPILERS = ("g++", "clang++")


def find_or_compile(
    backbone: Backbone,
    inputs: tuple[str, ...],
    max_tokens: int,
    stopped: threading.Event,
    *,
    kind: str = PLAIN,
    int8: bool = False,
) -> ProgramFiles:
    """The program of a backbone's forward, of its mixed passes (on an int8 base) or of its layers: from the cache, or
    compiled now.

    Raises `EngineError` where there is none, `OSError` where the cache cannot be used. stopped: ends the compiler
    early.
    """
    import transformers

    job = {
        "inputs": list(inputs),
        "max_tokens": max_tokens,
        "threads": torch.get_num_threads(),
        "kind": kind,
        "int8": int8,
        "ops": native_module.exports(),
    }
    versions = {
        "sparsehub": sparsehub.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "ops": sha256_file(program_ops()) if job["ops"] else None,
    }
    made_of = {"job": job, "versions": versions, "model": _model(backbone), "cpu": _cpu()}
    folder = cache_root() / "compiled" / sha256_bytes(canonical_json(made_of)).removeprefix("sha256:")
    if not folder.exists():
        _compile(folder, {**job, "backbone": str(backbone.checkpoint.folder)}, stopped)
    _refuse_strangers(folder)
    return read_program(folder)


def _model(backbone: Backbone) -> str:
    """All that a program depends on of a backbone; its weights are not."""
    table = {name: value for name, value in backbone.config.to_dict().items() if name != "_name_or_path"}
    return json.dumps([backbone.architecture, backbone.config._attn_implementation, table], sort_keys=True, default=str)


def _cpu() -> str:
    """What the machine's instructions are: a program made for others would not run."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{torch.backends.cpu.get_cpu_capability()} {features}"


def _compile(folder: Path, job: Mapping[str, Any], stopped: threading.Event) -> None:
    wanted = os.environ.get("CXX")
    if not any(map(shutil.which, [wanted] if wanted else _COMPILERS)):
        raise EngineError("there is no C++ compiler", fix="install g++")
    try:
        with new_folder(folder) as empty:
            _run(json.dumps({**job, "folder": str(empty)}), stopped)
    except UsageError:
        if not folder.exists():  # else another process made the same one meanwhile
            raise


def _run(job: str, stopped: threading.Event) -> None:
    """Run the compiler's process to its end; raises `EngineError` with the last line that it wrote."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sparsehub.engine.compiled.compiler", job],
            cwd=Path(sparsehub.__file__).parent.parent,  # from where the same code is imported
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,  # so that it ends with all that it has started
        )
        try:
            code = _wait(process, stopped)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code != 0:
            output.seek(0)
            lines = output.read().decode(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), f"exit status {code}")
            raise EngineError("the compiler failed", found=last.strip()[:300])


def _wait(process: subprocess.Popen[bytes], stopped: threading.Event) -> int:
    waited = 0.0
    while process.poll() is None:
        if stopped.wait(_LOOK_SECONDS):
            raise EngineError("the engine stopped")
        waited += _LOOK_SECONDS
        if waited > COMPILE_SECONDS:
            raise EngineError("the compiler took too long", found=f"more than {COMPILE_SECONDS:.0f} s")
    return process.returncode


def _refuse_strangers(folder: Path) -> None:
    """Raises `EngineError` where others than this user could have written a program, which is run as it is."""
    for path in (folder, folder.parent):
        found = path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EngineError(f"{path} can be written by others", fix=f"delete it, or: chmod go-w {path}")
