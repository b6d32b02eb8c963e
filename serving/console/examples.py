"""Texts to try a task with: rows of its test split, where whoever trained it had them put into the package."""

from __future__ import annotations

from dataclasses import dataclass

from sparsehub.package import Manifest
from sparsehub.package.results import results_of
from sparsehub.package.task_spec import TEXT_GENERATION

MOST_EXAMPLES = 6
_LABEL = 90  # characters of an example that are shown before it is chosen


@dataclass(frozen=True)
class TaskExample:
    """One row. texts: in the order of the task's fields."""

    texts: tuple[str, ...]

    @property
    def label(self) -> str:
        """What is shown to choose it by."""
        text = " | ".join(self.texts)
        return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"


def examples_in(manifest: Manifest) -> list[TaskExample]:
    """The examples of a package whose rows are one text."""
    task, found = manifest.task, results_of(manifest.training, manifest.task)
    if found is None or len((*task.text_fields, *task.choice_fields)) != 1 or task.kind == TEXT_GENERATION:
        return []
    texts = [row.text for row in found.examples if row.text.strip()]
    return [TaskExample((text,)) for text in texts[:MOST_EXAMPLES]]
