"""The docs site: its pages, and the list of what can go wrong."""

from __future__ import annotations

import contextlib
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
    classes, of_endpoint = (DOCS / "troubleshooting.md").read_text().split("These only an endpoint gives")
    assert sorted(rows_of(classes)) == sorted(raised)
    pytest.importorskip("ray", reason="needs ray: pip install '.[ray]'")
    assert sorted(rows_of(of_endpoint)) == sorted([*errors_of_the_endpoint(), "malformed_body"])


def test_an_error_has_the_status_that_the_page_says() -> None:
    from serving.protocol.errors import status_of

    kinds = {**vars(errors), **errors_of_the_endpoint()}
    for name, what in rows_of((DOCS / "troubleshooting.md").read_text()).items():
        if (said := re.search(r"\((\d{3})\)$", what)) and name in kinds:
            kind = kinds[name]
            assert status_of(kind.__new__(kind)) == int(said[1]), name


def rows_of(text: str) -> dict[str, str]:
    """The errors of a page's tables, with what happened."""
    return dict(re.findall(r"^\| `(\w+Error|malformed_body)` \| (.+) \| .+ \|$", text, re.MULTILINE))


def errors_of_the_endpoint() -> dict[str, type[errors.SparsehubError]]:
    """Those of our errors that clients of an endpoint meet and that are defined in it."""
    for module in ("serving.protocol.errors", "serving.protocol.request_model", "serving.request.results"):
        importlib.import_module(module)
    with contextlib.suppress(errors.MissingExtraError):
        importlib.import_module("serving.ray.ingress")
    found, last = {}, [errors.SparsehubError]
    while last:
        last = [kind for parent in last for kind in parent.__subclasses__()]
        found.update({kind.__name__: kind for kind in last if kind.__module__.startswith("serving.")})
    inside = ("ClientLeft", "AnswerError")  # of a client that reads no answer; of the console's own requests
    return {name: kind for name, kind in found.items() if name not in inside}


def test_what_the_api_page_names_is_there() -> None:
    for name in re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE):
        module, _, last = name.rpartition(".")
        assert name == "sparsehub.errors" or hasattr(importlib.import_module(module), last), name
