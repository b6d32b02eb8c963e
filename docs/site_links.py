"""A hook of mkdocs: links that lead out of `docs/` lead to the repository, those to notebooks to their pages here."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\]\((?P<path>\.\./[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs for every page, before it is rendered."""
    here = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def outside(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, match["path"]))
        if path.startswith("docs/"):
            return match[0]
        if path.endswith(".ipynb"):
            page_of_notebook = posixpath.join("docs", path.removesuffix(".ipynb") + ".md")
            return f"]({posixpath.relpath(page_of_notebook, here)})"
        return f"]({config.repo_url}/blob/main/{path}{match['anchor'] or ''})"

    return _LINK.sub(outside, markdown)
