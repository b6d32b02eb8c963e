"""The life of a worker under BentoML: one that cannot start ends the service, one that crashes is started again.

BentoML's process manager starts a worker again whenever it ends, for ever. So the manager's process keeps a record of
starts (`supervise`), and a worker that fails, or that is one start too many, writes why and ends the manager. A worker
ends with its manager, however that ended.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from serving.connection_guard import ConnectionGuard
from serving.guardian import Guardian
from serving.settings import STARTS
from sparsehub.errors import EngineError, SparsehubError

log = logging.getLogger("sparsehub")
RESTARTS, WINDOW_SECONDS = 5, 600.0  # so many within this time, and the service ends
EXIT_ERROR = 2
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
_STARTS_FILE, _FAILED_FILE = "starts", "failed"


def supervise() -> None:
    """Keep a record of the workers' starts; once, in the process that is to start them."""
    folder = Path(tempfile.mkdtemp(prefix="sparsehub-starts-"))
    os.environ[STARTS] = str(folder)  # the workers inherit it
    atexit.register(_finish, folder, os.getpid())
    with suppress(OSError):  # a worker says that nobody guards its connections
        Guardian(folder)


def connection_guard(connections: int) -> ConnectionGuard | None:
    """What answers this worker's clients where it is killed; None, and a line of the log, where nobody can.

    connections: as many as may be open.
    """
    try:
        if (folder := os.environ.get(STARTS)) is None:
            raise OSError("it was started without a process manager")
        return ConnectionGuard(Path(folder), connections)
    except OSError as error:
        log.warning("if this worker is killed, its clients see closed connections in place of errors: %s", error)
        return None


def _finish(folder: Path, process: int) -> None:
    """The manager ends well whatever its workers did: here its exit code says so."""
    if os.getpid() != process:  # a fork of it
        return
    failed = (folder / _FAILED_FILE).exists()
    shutil.rmtree(folder, ignore_errors=True)
    if failed:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(EXIT_ERROR)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """An error of ours inside is one line on standard error, and the end of this process with exit code 2."""
    try:
        yield
    except SparsehubError as error:
        _write_error(str(error))
        raise SystemExit(EXIT_ERROR) from error


@contextmanager
def starting_worker() -> Iterator[None]:
    """A worker starts inside; where it cannot, the reason is one line on standard error, and the service ends.

    Where nobody keeps a record, for instance in a notebook, errors are raised as they are.
    """
    folder = os.environ.get(STARTS)
    if folder is None:
        yield
        return
    _end_with_manager()
    try:
        _note_start(Path(folder))
        yield
    except SparsehubError as error:
        _end_service(Path(folder), str(error))
    except Exception as error:
        log.exception("the worker could not start")
        _end_service(Path(folder), f"the worker could not start: {type(error).__name__}: {error}")


def _end_with_manager() -> None:
    """A worker that outlived its manager would keep the port, and nobody would start it again."""
    with suppress(AttributeError, OSError):  # only Linux has it
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))


def _note_start(folder: Path) -> None:
    """Raises `EngineError` where workers were started too often."""
    file, now = folder / _STARTS_FILE, time.time()
    times = [float(line) for line in file.read_text().split()] if file.exists() else []
    recent = [then for then in times if 0 <= now - then < WINDOW_SECONDS]  # none from before the clock was set back
    file.write_text("\n".join(str(then) for then in [*recent, now]))
    if len(recent) > RESTARTS:
        raise EngineError(
            f"the worker ended {len(recent)} times within {WINDOW_SECONDS / 60:g} minutes",
            fix="look above for why: a killed process is often one that ran out of memory",
        )
    if recent:
        log.warning("the worker ended and is started again, %d of %d times", len(recent), RESTARTS)


def _end_service(folder: Path, reason: str) -> NoReturn:
    """End the manager before it starts another worker, then this process."""
    _write_error(reason)
    with suppress(OSError):
        (folder / _FAILED_FILE).write_text(reason)
    os.kill(os.getppid(), signal.SIGTERM)
    logging.shutdown()
    os._exit(EXIT_ERROR)


def _write_error(reason: str) -> None:
    sys.stderr.write(f"error: {' '.join(reason.split())}\n")
    sys.stderr.flush()
