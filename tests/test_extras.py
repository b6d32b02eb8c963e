"""A missing extra says which line installs it; a broken one is not mistaken for a missing one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sparsehub.errors import MissingExtraError
from sparsehub.extras import require

ROOT = Path(__file__).parent.parent


def test_a_missing_extra_names_the_exact_install_line() -> None:
    with pytest.raises(MissingExtraError, match=r"no_such_module is not installed.*pip install 'sparsehub\[serve\]'"):
        require("no_such_module", "serve")


def test_a_present_module_is_returned() -> None:
    assert require("json", "serve").dumps([1]) == "[1]"


def test_a_module_that_is_broken_inside_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_inside.py").write_text("import certainly_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="certainly_not_there"):
        require("broken_inside", "serve")


def test_serve_without_its_extra_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['bentoml'] = None; from sparsehub.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", hide, "serve", "--backbone", str(tmp_path), "--hub", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip() == "error: bentoml is not installed; to do: pip install 'sparsehub[serve]'"


def test_ray_serve_without_its_extra_says_what_to_install() -> None:
    hide = "import sys; sys.modules['ray'] = None; import serving.ray.app"
    result = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.stderr.strip().endswith("ray is not installed; to do: pip install 'sparsehub[ray]'")


def test_every_extra_that_the_code_names_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(declared) == {
        "train",
        "serve",
        "console",
        "s3",
        "sign",
        "peft",
        "ray",
        "demo",
        "bench",
        "deploy",
        "dev",
        "docs",
        "fuzz",
        "lint",
    }
