"""The demo's tasks: those that a clone brings, and the one that is trained while the endpoint runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsehub.training import TrainConfig

BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
EXAMPLES = 3  # test rows of each sort on a task's card, right and wrong ones: their licence allows it
CARRIED = "packages"  # in the folder of data: what a clone brings; `digests.json` in it pins them


@dataclass(frozen=True)
class DemoTask:
    """One of the demo's tasks: what `sparsehub train` gets."""

    name: str
    kind: str
    text: tuple[str, ...]
    epochs: float

    def config(self, data: Path, out: Path, backbone: str) -> TrainConfig:
        """The settings of a run on a folder with the splits."""
        from sparsehub.training import TrainConfig

        return TrainConfig(
            backbone=backbone,
            kind=self.kind,
            name=self.name,
            version="1.0.0",
            license="apache-2.0",
            text=self.text,
            epochs=self.epochs,
            train=str(data / "train.jsonl"),
            validation=str(data / "validation.jsonl"),
            test=str(data / "test.jsonl"),
            examples=EXAMPLES,
            out=str(out),
        )

    @property
    def route(self) -> str:
        return "/v1/score" if self.kind == "regression" else "/v1/classify"


TASKS = (
    DemoTask("topic", "text-classification", ("text",), 6),
    DemoTask("urgency", "regression", ("text",), 6),
    DemoTask("reply", "text-classification", ("text_a", "text_b"), 10),
)
# The task that is trained before the reader's eyes: from the replies alone, whether the ticket is closed by them.
LIVE = DemoTask("closed", "text-classification", ("text",), 4)
LIVE_SOURCE = "reply"  # the data set that its rows come from
CLOSED = {"escalated": "no", "resolved": "yes", "waiting_for_customer": "no"}  # its labels by those of that set


def live_row(row: Mapping[str, str]) -> dict[str, str]:
    """A row of the live task from one of its source."""
    return {"text": row["text_b"], "label": CLOSED[row["label"]]}
