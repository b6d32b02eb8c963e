"""The answers of several tasks beside each other, as HTML that is safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from serving.console.task_forms import ShownAnswer

TOP_LABELS = 5  # of an answer that are shown


def cards_of(answers: Sequence[ShownAnswer]) -> str:
    """A card for each task, with its most probable labels."""
    return f'<div class="answers">{"".join(map(_card, answers))}</div>'


def _card(answer: ShownAnswer) -> str:
    inner = _bars(answer.probabilities) if answer.probabilities is not None else ""
    inner += _words(answer.words) if answer.words is not None else ""
    return f'<section class="answer"><h2>{escape(answer.task)}</h2>{inner}{answer.text}</section>'


def _bars(probabilities: Mapping[str, float]) -> str:
    best = sorted(probabilities.items(), key=lambda pair: -pair[1])[:TOP_LABELS]
    lines = "".join(
        f'<li><span>{escape(label)}</span> <b>{share:.0%}</b><i style="width:{100 * share:.1f}%"></i></li>'
        for label, share in best
    )
    more = len(probabilities) - len(best)
    return f'<ul class="bars">{lines}</ul>' + (f'<p class="who">and {more} more labels</p>' if more else "")


def _words(words: Sequence[tuple[str, str | None]]) -> str:
    """Each word with its label behind it."""
    parts = [f"{escape(word)} <small>{escape(label)}</small>" for word, label in words if label is not None]
    return f'<p class="words">{" &nbsp;".join(parts)}</p>'
