"""The pages of the project stay true: every command exists with its flags, every file and link is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from sparsehub.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]


def commands(page: Path) -> list[list[str]]:
    """The `sparsehub ...` lines of a page's shell blocks, as arguments."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("sparsehub "):
                found.append(shlex.split(re.sub(r"\s#.*", "", line))[1:])
    return found


def test_the_readme_shows_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_parses(page: Path) -> None:
    root = typer.main.get_command(app)
    for arguments in commands(page):
        verb, name, *rest = root, "", *arguments
        while hasattr(verb, "commands"):
            name, *rest = rest
            verb = verb.commands[name]
        context = verb.make_context(name, rest, resilient_parsing=False)
        assert context.params, arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", prose):
        assert (page.parent / link).exists(), link


def test_the_readme_leads_to_every_page_of_the_docs() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}  # which the README is, for the site
    assert pages <= set(re.findall(r"\]\(docs/([\w-]+\.md)\)", readme))


def test_files_that_contributing_names_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:benchmarks|docs|serving|sparsehub|tests)/[\w./-]*)`", page):
        assert (ROOT / path).exists(), path


def test_files_that_the_readme_names_are_there() -> None:
    for path in re.findall(r"\bexamples/[\w./-]+\w", (ROOT / "README.md").read_text()):
        assert (ROOT / path).exists(), path


def test_the_bento_asks_for_what_the_project_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]
    served = [line for line in project["optional-dependencies"]["serve"] if not line.startswith("bentoml")]
    assert bento == [*project["dependencies"], *served]
