"""The project's own files agree with each other: one version, pins for what is allowed, files that a release needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sparsehub import __version__

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def required() -> list[Requirement]:
    """What the project and its extras ask for, without the project itself."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    return [found for found in map(Requirement, lines) if found.name != "sparsehub"]


def pins() -> dict[str, str]:
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]]
    return {canonicalize_name(name): version for name, version in lines}


def test_the_version_is_that_of_the_package_everywhere() -> None:
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sparsehub.__version__"}
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest is not None and newest[1] == __version__


@pytest.mark.parametrize("requirement", required(), ids=str)
def test_what_is_asked_for_has_a_floor_and_a_pin_that_it_allows(requirement: Requirement) -> None:
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned, prereleases=True)
    assert requirement.specifier or requirement.name.startswith("types-")


@pytest.mark.parametrize("package", ["sparsehub", "serving"])
def test_types_are_shipped(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]


def test_every_source_of_the_kernels_is_shipped_and_rebuilds_them() -> None:
    (extension,) = PROJECT["tool"]["setuptools"]["ext-modules"]
    headers = {str(path.relative_to(ROOT)) for path in (ROOT / "sparsehub" / "kernels").glob("*.hpp")}
    assert set(extension["depends"]) == headers
    assert {"kernels/*.cpp", "kernels/*.hpp"} <= set(PROJECT["tool"]["setuptools"]["package-data"]["sparsehub"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_reads_only_and_names_files_that_are_there(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for file in re.findall(r"(?<![\w/])(?:tests|constraints|\.github)[\w./-]*\.(?:py|txt|yml)", path.read_text()):
        assert (ROOT / file).exists(), file


def test_the_workflows_try_the_pythons_that_the_project_names() -> None:
    named = {line.rsplit(" ", 1)[1] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)}
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    assert set(jobs["test"]["strategy"]["matrix"]["python-version"]) == named


def test_the_hooks_are_programs_of_the_environment() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    assert all(hook["entry"].startswith(".venv/bin/") and hook["language"] == "system" for hook in repository["hooks"])
