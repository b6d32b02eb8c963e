"""The Jinja2 environments that render a card (Markdown) and a report (HTML) from the files in `templates/`.

A package's texts may be anybody's, so both escape every value by default; a template marks what it wants raw.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MARKS = re.compile(r"([\\`*\[\]~]|(?<!\w)_|_(?!\w))")  # what Markdown takes for its own


def render_markdown(template: str, values: Mapping[str, object]) -> str:
    """A Markdown template with its values, each escaped by `plain`."""
    return _markdown().get_template(template).render(values)


def render_html(template: str, values: Mapping[str, object]) -> str:
    """An HTML template with its values, each escaped as Jinja2's autoescape does it."""
    return _environment(autoescape=True).get_template(template).render(values)


def plain(value: object) -> str:
    """Text for a line of Markdown: without control characters, tags or table borders."""
    return _one_line(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


@functools.cache
def _markdown() -> Environment:
    environment = _environment(autoescape=False)
    environment.finalize = _escaped
    environment.filters["code"] = _code
    environment.filters["literal"] = _literal
    return environment


@functools.cache
def _environment(*, autoescape: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from sparsehub.package.describe import quantised_text
    from sparsehub.package.units import percent, size_text

    environment = Environment(
        loader=PackageLoader("sparsehub.package"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(fmt=format, percent=percent, size=size_text, quantised_text=quantised_text)
    return environment


def _escaped(value: object) -> str:
    return str(value) if hasattr(value, "__html__") else plain(value)


def _code(text: str) -> object:
    """Text for a code span, which shows everything but a backtick as it is."""
    from markupsafe import Markup

    return Markup(_one_line(text).replace("`", "'"))


def _literal(text: str) -> object:
    """Text whose stars, brackets and backticks are shown as they are, rather than as Markdown."""
    from markupsafe import Markup

    return Markup(_MARKS.sub(r"\\\1", plain(text)))


def _one_line(value: object) -> str:
    return _CONTROL.sub(" ", str(value))
