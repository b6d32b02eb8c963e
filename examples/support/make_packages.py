"""Make the packages that `sparsehub demo` serves, and pin them: run from the root of a clone, with `[demo]` installed.

python examples/support/make_packages.py
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from sparsehub import train
from sparsehub.cli.demo_tasks import BACKBONE, CARRIED, TASKS
from sparsehub.files import write_file
from sparsehub.package import read_manifest

DATA = Path("examples/support")


def main() -> None:
    digests = {}
    for task in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / task.name
            train(task.config(DATA / task.name, made, BACKBONE), report=lambda line: print(line, file=sys.stderr))
            kept = DATA / CARRIED / task.name
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(made, kept)
        digests[task.name] = read_manifest(kept).digest
    write_file(DATA / CARRIED / "digests.json", (json.dumps(digests, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
