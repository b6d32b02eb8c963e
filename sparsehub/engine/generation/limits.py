"""What a generator may use, and what it uses."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sparsehub.errors import UsageError


@dataclass(frozen=True)
class GenerationLimits:
    """cache_tokens: keys and values that fit in the cache; page_tokens: of one page, which one sequence has to itself;
    batch_tokens: of one step, prompts are split to fit; sequences: that run at once; waiting: that wait for a place;
    new_tokens: the most that one request may ask for."""

    cache_tokens: int = 4096
    page_tokens: int = 16
    batch_tokens: int = 256
    sequences: int = 64
    waiting: int = 512
    new_tokens: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise UsageError(f"{field.name} must be at least 1", found=getattr(self, field.name))
        if self.page_tokens < 4 or self.cache_tokens < self.page_tokens:
            raise UsageError("a page holds 4 tokens at least, and the cache a page", found=str(self))

    @property
    def pages(self) -> int:
        return self.cache_tokens // self.page_tokens

    def pages_of(self, tokens: int) -> int:
        """Pages that a sequence of so many tokens takes."""
        return -(-tokens // self.page_tokens)


@dataclass(frozen=True)
class GenerationUsage:
    """running, waiting: sequences; pages: of the cache that are in use now, of `most`; steps, tokens: since the start,
    tokens that were generated."""

    running: int
    waiting: int
    pages: int
    most: int
    steps: int
    tokens: int
