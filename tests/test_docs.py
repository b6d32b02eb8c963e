"""The docs site: its pages, and the list of what can go wrong."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sparsehub import errors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def pages(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages(part)]  # type: ignore[attr-defined]


def test_the_site_leads_to_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    notebooks = [f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")]  # pages by a hook
    texts = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert sorted(pages(site["nav"])) == sorted([*texts, *notebooks])


def hook_named(name: str) -> Any:
    """A hook of mkdocs, as it loads it."""
    found = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_a_notebook_is_a_page_with_its_text_and_code() -> None:
    hook = hook_named("notebook_pages")
    for path in (ROOT / "examples").glob("*.ipynb"):
        page = hook.page_of(path, "https://example.org/project")
        assert page.startswith("# ") and f"/blob/main/examples/{path.name})" in page and "```python\n" in page
        for link in re.findall(r"\]\((\.\./[\w-]+\.md)", page):
            assert (DOCS / "examples" / link).resolve().is_file(), link


@pytest.mark.parametrize(
    ("page", "written", "meant"),
    [
        ("index.md", "../examples/quickstart.ipynb", "examples/quickstart.md"),
        ("index.md", "../LICENSE", "https://example.org/project/blob/main/LICENSE"),
        ("examples/quickstart.md", "../data.md#labels", "../data.md#labels"),
    ],
)
def test_links_lead_to_pages_of_the_site_or_to_the_repository(page: str, written: str, meant: str) -> None:
    at = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    config = SimpleNamespace(repo_url="https://example.org/project")
    rendered = hook_named("site_links").on_page_markdown(f"[x]({written})", page=at, config=config)
    assert rendered == f"[x]({meant})"


def test_every_error_has_its_way_out() -> None:
    raised = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.SparsehubError) and value.__module__ == errors.__name__
    } - {"SparsehubError"}
    named = re.findall(r"^\| `(\w+Error)` \| .+ \| .+ \|$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(raised)


def test_what_the_api_page_names_is_there() -> None:
    import importlib

    for name in re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE):
        module, _, last = name.rpartition(".")
        assert name == "sparsehub.errors" or hasattr(importlib.import_module(module), last), name
