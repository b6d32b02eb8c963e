"""The card: the README.md that is written into every package, for the Hugging Face Hub and for people."""

from __future__ import annotations

from collections.abc import Collection

from sparsehub.package.describe import thresholds_text
from sparsehub.package.metadata import front_matter
from sparsehub.package.rendering import render_markdown
from sparsehub.package.results import LabelScores, SplitResults
from sparsehub.package.summary import PackageSummary

SHOWN_LABELS = 100
SHOWN_SCORES = 30  # labels; of more the ones with the lowest F1
DENSITY_PICTURE, VALUES_PICTURE = "density.png", "values.png"
CURVE_PICTURE, CONFUSION_PICTURE, PREDICTIONS_PICTURE = "learning_curve.png", "confusion.png", "predictions.png"


def render_card(package: PackageSummary, pictures: Collection[str] = ()) -> str:
    """The card of a package: metadata as the Hugging Face Hub expects it, then text for people.

    pictures: names of the pictures that lie beside the card. Sizes are shown where the summary knows the files.
    """
    values = {
        "package": package,
        "front_matter": front_matter(package),
        "pictures": pictures,
        "density_picture": DENSITY_PICTURE,
        "values_picture": VALUES_PICTURE,
        "curve_picture": CURVE_PICTURE,
        "confusion_picture": CONFUSION_PICTURE,
        "predictions_picture": PREDICTIONS_PICTURE,
        "scores": shown_scores(package.results),
        "shown_labels": SHOWN_LABELS,
        "thresholds": thresholds_text(package.task, SHOWN_LABELS),
        "layer_share": _layer_share(package),
    }
    return render_markdown("card.md.j2", values)


def shown_scores(results: SplitResults | None) -> tuple[LabelScores, ...]:
    """The labels of which a card or a report shows the scores: all, in their order, or the worst of many."""
    labels = results.labels if results is not None else ()
    return labels if len(labels) <= SHOWN_SCORES else tuple(sorted(labels, key=lambda its: its.f1)[:SHOWN_SCORES])


def _layer_share(package: PackageSummary) -> float:
    """Of the changed entries, the share that lies in the layers."""
    cells = package.changes.heat_map.cells.values()
    return sum(cell.nnz for cell in cells) / max(package.changes.nnz, 1)
