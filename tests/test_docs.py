"""The docs site: its pages, and the list of what can go wrong."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

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
    assert sorted(pages(site["nav"])) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


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
