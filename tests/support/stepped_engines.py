"""Engines that generate text, not started: a test takes their steps itself, and sees what is between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, GenerationLimits


@contextmanager
def stepped_engines(folder: Path, **defaults: Any) -> Iterator[Callable[..., Engine]]:
    """make(**options), which makes an engine of a checkpoint; at the end all of them are stopped."""
    made: list[Engine] = []
    defaults = {"generation": GenerationLimits(cache_tokens=2048), "check_seconds": 0, **defaults}

    def make(**options: Any) -> Engine:
        made.append(Engine(load_backbone(str(folder)), **{**defaults, **options}))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.stop(drain=0)


def run(engine: Engine, generations: Iterable[Any], most: int = 2000) -> None:
    """Take steps until these texts are written."""
    generator = engine.generator
    assert generator is not None
    for _ in range(most):
        if all(g.future.done() for g in generations):
            return
        generator.step()
    raise AssertionError("the texts do not end")
