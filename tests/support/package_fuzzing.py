"""Any bytes in the place of a package's file, and what a reader owes then. As a program, atheris picks the bytes.

python -m tests.support.package_fuzzing [FOLDER] [options of libFuzzer, such as -max_total_time=60]
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden" / "package"
PARTS = ("sparsehub.json", "delta.safetensors", "head.safetensors", "README.md")
SLACK = 1 << 20  # bytes of memory beside the twofold of what lies in the folder: frames, messages, small objects
_WATCHED = ("open", "os.", "shutil.", "subprocess.", "socket.", "exec", "compile", "ctypes.", "tempfile.")
_seen: list[tuple[str, str]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None or not event.startswith(_WATCHED):
        return
    what = arguments[0] if arguments else ""
    if not isinstance(what, int):  # a descriptor: its path was seen when it was opened
        _seen.append((event, str(what)))


sys.addaudithook(_hook)  # it stays, and sleeps while nothing is watched


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raises `AssertionError` where the block touches anything outside the folder, or runs anything."""
    global _seen
    _seen = []
    try:
        yield
        seen = _seen
    finally:
        _seen = None
    inside = {("os.scandir", str(folder)), *(("open", str(path)) for path in folder.iterdir())}
    outside = [touch for touch in seen if touch not in inside]
    assert not outside, outside


def refused(read: Callable[[Path], Any], folder: Path) -> str | None:
    """Why a package is refused; None where it is sound. Any other exception than a refusal passes through."""
    from sparsehub.errors import FormatError

    try:
        read(folder)
    except FormatError as error:
        message = str(error)
        message.encode()  # it can be printed, whatever the package says
        assert len(message) < 4_000, message
        return message
    return None


def attempt(folder: Path, part: str, data: bytes) -> bool:
    """Put `data` in the place of a package's file, all digests right, and read it; whether it is sound.

    Raises for a crash, a touch outside the folder, memory beyond twice what lies there, and where two readers differ.
    """
    from sparsehub.package import read_package, validate_package
    from tests.support.malicious_packages import reseal

    (folder / part).write_bytes(data)
    if part != PARTS[0]:
        reseal(folder)
    declared = sum(path.stat().st_size for path in folder.iterdir())
    with watched(folder):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        proved = refused(validate_package, folder)
        peak = tracemalloc.get_traced_memory()[1] - before
        read = refused(read_package, folder)
    assert peak < 2 * declared + SLACK, f"{peak} bytes for a package of {declared}"
    assert (proved is None) == (read is None), (proved, read)
    return proved is None


@contextlib.contextmanager
def spoilable() -> Iterator[Path]:
    """A copy of the golden package, in memory where the system has such a place; what is allocated is traced."""
    room = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=room if room.is_dir() else None) as root:
        folder = shutil.copytree(GOLDEN, Path(root) / "package")
        _warm_up(folder)
        tracemalloc.start(1)  # once: each start costs memory for good
        try:
            yield folder
        finally:
            tracemalloc.stop()


def _warm_up(folder: Path) -> None:
    """Read what is sound and what is not, so that later nothing is imported and no annotation is evaluated."""
    from sparsehub.package import read_package, validate_package
    from tests.support.malicious_packages import PARENT, manifest, reseal

    for part in PARTS:
        for data in (b"\xff", (GOLDEN / part).read_bytes()):
            (folder / part).write_bytes(data)
            if part != PARTS[0]:
                reseal(folder)
            for read in (validate_package, read_package):
                refused(read, folder)
    manifest("lineage/parents", [PARENT])(folder)
    validate_package(folder)
    restore(folder)


def restore(folder: Path) -> None:
    """The golden package again."""
    for path in GOLDEN.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def chosen(data: bytes) -> tuple[str, bytes]:
    """A fuzzer's bytes as a part and what to put there. Half of the first bytes mend what hardly any change survives.

    A manifest is made canonical; a file of tensors is a line, its header, with the right length before it, and data.
    """
    from sparsehub.errors import FormatError
    from sparsehub.files import canonical_json

    part, body, mend = PARTS[data[0] % len(PARTS)], data[1:], data[0] & 0x80
    if mend and part == PARTS[0]:
        with contextlib.suppress(ValueError, RecursionError, FormatError):
            body = canonical_json(json.loads(body))
    if mend and part.endswith(".safetensors"):
        header, _, rest = body.partition(b"\n")
        body = struct.pack("<Q", len(header)) + header + rest
    return part, body


def seeds(folder: Path) -> Iterator[bytes]:
    """Inputs to begin with: every file of the golden package, and whatever the malicious ones changed of it."""
    from tests.support.malicious_packages import CASES

    for case in [None, *CASES]:
        with tempfile.TemporaryDirectory() as root:
            package = shutil.copytree(folder, Path(root) / "package")
            if case is not None:
                case.change(package)
            for number, part in enumerate(PARTS):
                path = package / part
                if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 16:
                    yield from _as_inputs(number, path.read_bytes())


def _as_inputs(number: int, data: bytes) -> Iterator[bytes]:
    """What `chosen` turns into these bytes, in both ways."""
    yield bytes([number]) + data
    length = 8 + int.from_bytes(data[:8], "little") if PARTS[number].endswith(".safetensors") else 0
    yield bytes([0x80 + number]) + (data[8:length] + b"\n" + data[length:] if 8 < length <= len(data) else data)


def main() -> int:
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("atheris is not installed: pip install 'sparsehub[fuzz]', where there is a build of it\n")
        return 0
    import atheris

    with atheris.instrument_imports(include=["sparsehub"]):
        import sparsehub.package.reader
        import sparsehub.package.validation  # noqa: F401
    with spoilable() as folder, tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate({*seeds(folder)}):
            (Path(corpus) / str(number)).write_bytes(seed)

        def one(data: bytes) -> None:
            if data:
                restore(folder)
                attempt(folder, *chosen(data))

        limits = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=8192", f"-artifact_prefix={Path.cwd()}{os.sep}"]
        atheris.Setup([sys.argv[0], corpus, *limits, *sys.argv[1:]], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
