"""A missing extra says which line installs it; a broken one is not mistaken for a missing one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def declared() -> dict[str, list[str]]:
    """The requirements of every extra, as pyproject.toml has them."""
    extras: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    return extras


def required() -> Iterator[tuple[str, str, str]]:
    """Every call of `require`: where it stands, its module and its extra."""
    for path in sorted(path for folder in ("sparsehub", "serving") for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
        constants = {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in assigned}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "require":
                module, extra = (constants.get(ast.unparse(given), ast.unparse(given)) for given in call.args)
                yield f"{path.relative_to(ROOT)}:{call.lineno}", ast.literal_eval(module), ast.literal_eval(extra)


def installs(extra: str) -> set[str]:
    """The distributions that the install line of an extra brings here, those that they need themselves included."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in declared()[extra]]
    while waiting:
        needed = waiting.pop()
        name = canonicalize_name(needed.name)
        if name == "sparsehub":
            waiting += [Requirement(text) for own in needed.extras for text in declared()[own]]
        elif name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            found.add(name)
            with suppress(metadata.PackageNotFoundError):
                waiting += map(Requirement, metadata.requires(name) or ())
    return found


def distributions_of(module: str) -> set[str]:
    """Which distributions have a module here; where none has, the one that is named like it."""
    root = module.partition(".")[0]
    return {canonicalize_name(name) for name in metadata.packages_distributions().get(root, [root])}


def test_every_install_line_brings_what_is_missing() -> None:
    calls = list(required())
    assert len({extra for _, _, extra in calls}) > 5
    undeclared = [call for call in calls if call[2] not in declared()]
    assert undeclared == []
    brought = {extra: installs(extra) for _, _, extra in calls}
    wrong = [call for call in calls if not distributions_of(call[1]) & brought[call[2]]]
    assert wrong == []


def test_install_lines_of_texts_name_extras_that_are_declared() -> None:
    texts = [
        path
        for folder in ("sparsehub", "serving", "docs", "benchmarks", "examples", "tests")
        for path in (ROOT / folder).rglob("*")
    ]
    named = {
        (path.name, extra.strip())
        for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *texts]
        if path.suffix in (".py", ".md")
        for line in re.findall(r"(?:sparsehub|['\"]\.)\[([a-z0-9, ]+)\]", path.read_text(encoding="utf-8"))
        for extra in line.split(",")
    }
    assert len(named) > 5
    assert {extra for _, extra in named} <= set(declared()), named


def test_the_extras_are_these() -> None:
    assert set(declared()) == {
        "train",
        "serve",
        "console",
        "s3",
        "sign",
        "peft",
        "ray",
        "demo",
        "quantised",
        "bench",
        "deploy",
        "dev",
        "docs",
        "fuzz",
        "lint",
    }
