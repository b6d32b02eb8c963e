"""A small language model that really speaks, trained by the scripts of `examples/tiny_lm`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class TinyLanguage:
    """A small language model that was trained, on a play of five voices. folder: its checkpoint; text: of the play."""

    folder: Path
    text: str

    def speeches(self, voice: str) -> list[str]:
        """What one voice says, in order."""
        turns = (turn.partition(":\n") for turn in self.text.split("\n\n"))
        return [said.strip() for name, _, said in turns if name.strip() == voice]


def train_tiny_language(folder: Path) -> TinyLanguage:
    """Train it for some seconds: 150,000 parameters."""
    voices, training = _example("tiny_lm/voices.py"), _example("tiny_lm/train.py")
    text = voices.play(3000)
    perplexity = training.train_lm(
        folder, text, steps=120, batch=8, length=96, vocabulary=400, context=160, shape=training.SMALL
    )
    assert perplexity < 20, perplexity  # of 400 by chance
    return TinyLanguage(folder, text)


def _example(path: str) -> Any:
    """A script of `examples/` as a module."""
    place = EXAMPLES / path
    spec = importlib.util.spec_from_file_location(f"example_{place.stem}", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
