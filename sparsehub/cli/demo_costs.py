"""What the demo measures: sizes, a switch from one task to another, and items per second beside one plain model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsehub.engine import Engine
from sparsehub.engine.swap import Swap
from sparsehub.package.encoding import collate, encode
from sparsehub.package.materialize import task_model_of
from sparsehub.patch import make_patch

if TYPE_CHECKING:
    from sparsehub.backbone import Backbone, Checkpoint
    from sparsehub.package import Package

SWITCHES, ROUNDS, BATCH = 60, 3, 16


@dataclass(frozen=True)
class Switches:
    """Switches from task to task in one arena."""

    median_ms: float
    exact: bool  # whether the base weights were as before, bit for bit, afterwards


def measure_switches(backbone: Backbone, packages: Sequence[Package]) -> Switches:
    """Apply the packages in turn, and put the base weights back."""
    patches = [make_patch(backbone, package.delta) for package in packages]
    swap, times, before = Swap(backbone.arena), [], backbone.arena.digest()
    for i in range(SWITCHES):
        start = time.perf_counter()
        swap.to(patches[i % len(patches)])
        times.append(time.perf_counter() - start)
    swap.to(None)
    return Switches(statistics.median(times) * 1e3, backbone.arena.digest() == before)


def measure_speed(
    backbone: Backbone, checkpoint: Checkpoint, packages: Sequence[Package], texts: Sequence[str]
) -> tuple[float, float]:
    """Texts a second, in turn: of the engine, each text asked of the next package, and of the first package as a plain
    transformers model that does nothing else. Medians of a few rounds."""
    plain = _plain(packages[0], checkpoint, texts)
    with Engine(backbone) as engine:
        names = [f"{engine.add(package).name}@{package.digest}" for package in packages]

        def mixed() -> None:
            asked = [engine.classify(names[i % len(names)], [text]) for i, text in enumerate(texts)]
            for request in asked:
                request.results()

        mixed()
        plain()
        found = [(_seconds(mixed), _seconds(plain)) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(column) for column in zip(*found, strict=True))
    return len(texts) / ours, len(texts) / theirs


def _plain(package: Package, checkpoint: Checkpoint, texts: Sequence[str]) -> Callable[[], None]:
    """All texts through the package's materialised model, tokenised before, in batches of like length."""
    from sparsehub.backbone.tokenizer import load_tokenizer

    task, model = package.manifest.task, task_model_of(package, checkpoint).model.eval()
    tokenizer = load_tokenizer(checkpoint)
    rows = sorted(encode(task, tokenizer, [{task.text_fields[0]: text} for text in texts]), key=lambda row: row.length)
    batches: list[dict[str, Any]] = [collate(tokenizer, rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            model(**batch)

    return run


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def folder_bytes(folder: Path) -> int:
    """Bytes of a package's files."""
    return sum(file.stat().st_size for file in folder.iterdir())
