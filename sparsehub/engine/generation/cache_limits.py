"""What text generation may use, and what it uses."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sparsehub.errors import UsageError


@dataclass(frozen=True)
class GenerationLimits:
    """How much a `Generator` may run at once; given to `Engine`."""

    cache_tokens: int = 4096  # whose keys and values fit in the cache, of all running texts together
    page_tokens: int = 16  # of a page of the cache, which one text has to itself
    batch_tokens: int = 256  # of one step; prompts are split to fit
    sequences: int = 64  # texts that run at once
    waiting: int = 512  # texts that may wait to be admitted
    new_tokens: int = 1024  # the most that one text may ask for

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise UsageError(f"{field.name} must be at least 1", found=getattr(self, field.name))
        if self.page_tokens < 4 or self.cache_tokens < self.page_tokens:
            raise UsageError("a page holds 4 tokens at least, and the cache a page", found=str(self))

    @property
    def pages(self) -> int:
        """Pages of the cache."""
        return self.cache_tokens // self.page_tokens

    @property
    def rows(self) -> int:
        """Texts of one step, at most."""
        return min(self.sequences, self.batch_tokens)

    def pages_of(self, tokens: int) -> int:
        """Pages that a text of so many tokens takes, prompt included."""
        return -(-tokens // self.page_tokens)


@dataclass(frozen=True)
class GenerationUsage:
    """What a `Generator` runs and has done; for metrics."""

    running: int  # texts
    waiting: int
    pages: int  # of the cache, in use
    most: int  # pages of the cache in all
    steps: int  # since the start
    tokens: int  # generated since the start
