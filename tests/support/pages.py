"""The pages of the project as a reader meets them: their code blocks, and the commands in these."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    number: int  # of the page's blocks, from 0
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}-{self.language or 'text'}-{self.number}"

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, those that a backslash goes on joined, without comments."""
        lines = (re.sub(r"(^|\s+)#\s.*", "", line).strip() for line in self.text.replace("\\\n", " ").splitlines())
        return [line for line in lines if line]


def blocks(*languages: str) -> list[Block]:
    """Every fenced block of the pages, or those of some languages."""
    found = [
        Block(page, number, fence["language"], fence["text"])
        for page in PAGES
        for number, fence in enumerate(_FENCE.finditer(page.read_text(encoding="utf-8")))
    ]
    return [block for block in found if not languages or block.language in languages]


def commands(page: Path) -> list[str]:
    """All commands of a page's shell blocks, in order."""
    return [command for block in blocks("sh") if block.page == page for command in block.commands]


@dataclass(frozen=True)
class Curl:
    """A request as a curl command makes it."""

    path: str
    body: str | None

    @classmethod
    def of(cls, command: str) -> Curl:
        words = shlex.split(command)
        url = next(word for word in words[1:] if "localhost" in word)
        body = next((value for flag, value in pairwise(words) if flag in ("-d", "--json")), None)
        return cls(re.sub(r"^(http://)?localhost:\d+", "", url), body)
