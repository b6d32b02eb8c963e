"""A card as HTML that cannot do anything: it came from a hub, and its author is not trusted."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from sparsehub.package.manifest import CARD_FILE

MOST = 400_000  # characters
_TABLE = '<div class="wide" tabindex="0" role="region" aria-label="Table"><table>'  # keys scroll it too
_PNG = b"\x89PNG\r\n\x1a\n"


def card_html(attachments: Mapping[str, bytes], elsewhere: Collection[str] = ()) -> str:
    """The card without its front matter: no tag of its own stays, a picture is one of the package or its text alone,
    and a link opens a new page that does not learn from where.

    elsewhere: pictures that the page shows already.
    """
    text = attachments.get(CARD_FILE, b"").decode(errors="replace")[:MOST]
    if not text.strip():
        return "<p>This package has no card.</p>"
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("image", _image)
    markdown.add_render_rule("link_open", _link)
    markdown.add_render_rule("table_open", lambda *_: _TABLE)
    markdown.add_render_rule("table_close", lambda *_: "</table></div>")
    env = {"pictures": attachments, "elsewhere": elsewhere}
    return f'<div class="card prose">{markdown.render(_without_front(text), env)}</div>'


def picture_html(data: bytes, text: str) -> str:
    """A PNG inside the page, so that no route has to give it."""
    inside = base64.b64encode(data).decode()
    image = f'<img class="drawn" alt="{escape(text)}" src="data:image/png;base64,{inside}">'
    return f'<span class="picture" tabindex="0" role="region" aria-label="{escape(text)}">{image}</span>'


def _without_front(text: str) -> str:
    lines = text.lstrip("\ufeff").splitlines()
    if lines and lines[0].strip() == "---":
        end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
        lines = lines[end + 1 :] if end is not None else lines
    return "\n".join(lines)


def _image(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: OptionsDict, env: EnvType) -> str:
    token: Any = tokens[place]
    text, name = renderer.renderInlineAsText(token.children or [], options, env), str(token.attrs.get("src", ""))
    if name in env["elsewhere"]:
        return ""
    data = env["pictures"].get(name, b"")
    return picture_html(data, text) if data.startswith(_PNG) else f"<em>[picture: {escape(text)}]</em>"


def _link(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[place]
    target = str(token.attrs.get("href", ""))
    if target.lower().startswith(("https://", "http://", "mailto:")):
        token.attrs |= {"target": "_blank", "rel": "noopener noreferrer nofollow"}
    else:  # a place beside the package means nothing here
        token.attrs = {}
    return renderer.renderToken(tokens, place, options, env)
