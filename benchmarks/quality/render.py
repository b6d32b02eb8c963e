"""Write what `benchmarks.quality` found: the table beside the results and into docs/methods.md, and the plot."""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality.plot import draw
from benchmarks.quality.runs import RESULTS, lines
from benchmarks.quality.table import report, results_of

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"


def render(path: Path) -> None:
    """Write the table beside the results and into docs/methods.md, and draw the plot."""
    found = list(lines(path))
    text = "\n".join(report(found))
    path.with_suffix(".md").write_text(f"# Methods by tasks\n\n{text}\n", encoding="utf-8")
    draw(results_of(found), path.with_suffix(".png"))
    if path == RESULTS:
        DOCS.write_text(put_into(DOCS.read_text(encoding="utf-8"), text), encoding="utf-8")


def put_into(page: str, text: str) -> str:
    """The page with what stands between the two marks replaced."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"
