"""Why projection is unsteady: two weights that change places make the projected model jump.

    python examples/projection_discontinuity.py --out runs/discontinuity.png

Source: Figure 3 and Proposition 1 of Fu et al., AAAI 2023. A method that projects (diff or child pruning) keeps the
largest changes and puts the others back. Left: two changes of one model; the point walks evenly along a line, and its
projection jumps where both are equally large. Right: full fine-tuning of the demo's `topic` task. After each step:
how far the weights went, how far their projection onto the largest 0.5% went, and how far the same change went on a
mask that stays. A fixed mask never goes farther than the weights did; the projection does, because entries swap places.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from sparsehub.training import TrainConfig
from sparsehub.training.data import load_data
from sparsehub.training.dense import DenseModel
from sparsehub.training.fitting import open_job
from sparsehub.training.trainable import candidates

DATA = Path(__file__).parent / "support" / "topic" / "train.jsonl"
INK, ACCENT, PALE = "#1f2933", "#c2410c", "#94a3b8"


@dataclass(frozen=True)
class Step:
    """How far one step of the optimiser went. swapped: share of the kept entries that were not kept before it."""

    weights: float
    projected: float
    fixed: float
    swapped: float


def project(change: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The change with all but its `keep` largest entries at zero, and which those are."""
    kept = torch.zeros_like(change, dtype=torch.bool)
    kept[change.abs().topk(keep).indices] = True
    return change * kept, kept


def measured_steps(backbone: str, steps: int, density: float, learning_rate: float) -> Iterator[Step]:
    """Full fine-tuning, and what a projection after each step would have made of it."""
    config = TrainConfig(
        backbone=backbone, kind="text-classification", name="topic", train=str(DATA), text=("text",), out="unused"
    )
    with tempfile.TemporaryDirectory() as run:
        job = open_job(config, load_data(config), Path(run), print)
    model = DenseModel(job.task_model, candidates(job.task_model), budget=0)
    optimizer = model.optimizer(learning_rate=learning_rate, head_learning_rate=1e-3, weight_decay=0.0)
    keep = round(density * model.values.numel())
    before = model.values.detach().clone()
    fixed: Tensor | None = None
    for batch in _batches(job, steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after = model.values.detach()
        (old, was), (new, now) = project(before, keep), project(after, keep)
        if fixed is None:
            fixed = now
        else:  # the first step starts from no change at all: there is nothing to swap
            far = [float(moved.norm()) for moved in (after - before, new - old, (after - before) * fixed)]
            yield Step(*far, swapped=1 - float((was & now).sum()) / keep)
        before = after.clone()


def _batches(job, steps: int) -> Iterator[dict[str, Tensor]]:  # type: ignore[no-untyped-def]
    loader = DataLoader(job.rows(job.data.train), batch_size=16, shuffle=True, collate_fn=job.collator)
    done = 0
    while done < steps:
        for batch in loader:
            if done < steps:
                yield batch
            done += 1


def draw(steps: list[Step], density: float, path: Path) -> None:
    """Both panels into one picture."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    _draw_sketch(left)
    places = range(2, len(steps) + 2)
    right.plot(
        places, [s.projected for s in steps], color=ACCENT, marker="o", ms=3, label=f"largest {density:.1%} of it"
    )
    right.plot(places, [s.weights for s in steps], color=INK, marker="o", ms=3, label="all weights")
    right.plot(places, [s.fixed for s in steps], color=PALE, marker="o", ms=3, label=f"a fixed {density:.1%} of it")
    right.set_xlabel("step")
    right.set_ylabel("how far the change went in this step")
    right.set_ylim(bottom=0)
    right.legend(frameon=False, fontsize=9)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_sketch(ax) -> None:  # type: ignore[no-untyped-def]
    walk = torch.stack([torch.linspace(1.2, 0.6, 9), torch.linspace(0.6, 1.2, 9) + 0.01], dim=1)
    projected = torch.stack([project(point, 1)[0] for point in walk])
    ax.plot([0, 1.3], [0, 1.3], color=PALE, linestyle="--", linewidth=1)
    ax.annotate("equally large", (1.02, 1.08), color=PALE, fontsize=8, rotation=45, ha="center")
    for point, shadow in zip(walk, projected, strict=True):
        ax.plot([point[0], shadow[0]], [point[1], shadow[1]], color=PALE, linewidth=0.6)
    ax.scatter(*walk.T, color=INK, s=20, label="change of two weights", zorder=3)
    ax.scatter(*projected.T, color=ACCENT, s=20, label="its projection: the larger one", zorder=3)
    ax.set_xlabel("first weight")
    ax.set_ylabel("second weight")
    ax.set_xlim(-0.05, 1.35)
    ax.set_ylim(-0.05, 1.6)
    ax.legend(frameon=False, fontsize=8, loc="upper right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--density", type=float, default=0.005)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    given = parser.parse_args()
    steps = list(measured_steps(given.backbone, given.steps, given.density, given.learning_rate))
    draw(steps, given.density, given.out)
    farther = sum(step.projected > step.weights for step in steps)
    swapped = sum(step.swapped for step in steps) / len(steps)
    print(f"the projection went farther than the weights in {farther} of {len(steps)} steps")
    print(f"on average {swapped:.1%} of the kept entries were others after a step; picture: {given.out}")


if __name__ == "__main__":
    main()
