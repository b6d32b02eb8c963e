"""The pictures of README.md: there, drawn from the numbers that the results hold, and said beside them as they are."""

from __future__ import annotations

import html
import json
import re
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pictures, terminal_picture
from benchmarks.quality import layers

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def numbers_of(name: str) -> Any:
    """What a picture says that it was drawn from."""
    text = (pictures.IMAGES / f"{name}.svg").read_text(encoding="utf-8")
    (found,) = re.findall(r"<dc:description>(.*?)</dc:description>", text, re.DOTALL)
    return json.loads(html.unescape(found))


@pytest.mark.parametrize("theme", pictures.THEMES)
def test_the_plots_show_what_was_measured(theme: str) -> None:
    fix = "run: python -m benchmarks.pictures"
    assert numbers_of(f"quality-{theme}") == [asdict(dot) for dot in pictures.quality_dots()], fix
    series = {pictures.SERIES[case]: [list(p) for p in points] for case, points in pictures.throughput().items()}
    assert numbers_of(f"throughput-{theme}") == series, fix


def test_the_page_that_helps_to_choose_has_the_table_of_the_plot() -> None:
    depths = pictures.layer_depths()
    assert numbers_of("layers") == [asdict(depth) for depth in depths], "run: python -m benchmarks.pictures"
    page = layers.PAGE.read_text(encoding="utf-8")
    assert layers.put_into(page, layers.table(depths)) == page, "run: python -m benchmarks.quality.layers render"
    assert len(depths) >= 4 and all(len(depth.scores) == 4 for depth in depths)
    assert all(len(seeds) == 3 for depth in depths if depth.layers != layers.PROBE for seeds in depth.scores.values())


def test_a_plot_is_drawn_again_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pictures, "IMAGES", tmp_path)
    for _ in range(2):
        pictures.draw_throughput(pictures.throughput(), "dark")
        drawn = (tmp_path / "throughput-dark.svg").read_text(encoding="utf-8")
        assert drawn.count("<path") > 20 and "http://www.w3.org/2000/svg" in drawn
        (tmp_path / "first.svg").exists() or (tmp_path / "throughput-dark.svg").rename(tmp_path / "first.svg")
    assert (tmp_path / "first.svg").read_text(encoding="utf-8") == drawn


def test_the_table_of_the_readme_says_what_was_measured() -> None:
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in _cells(README)}
    served = {case: dict(points) for case, points in pictures.throughput().items()}
    one, lora, ours = (
        served[case]
        for case in (
            "bare FastAPI, one plain model",
            "bare FastAPI, PEFT LoRA r=8, adapter_names",
            "endpoint",
        )
    )
    assert rows["items a second over HTTP, 1 task"] == [f"{rate:.0f}" for rate in (one[1], lora[1], ours[1])]
    assert rows["items a second over HTTP, 64 tasks"][1:] == [f"{rate:.0f}" for rate in (lora[64], ours[64])]
    dots = {dot.method: dot for dot in pictures.quality_dots()}
    compared = [dots[method] for method in ("full", "lora", "sam")]
    assert rows["mean test score of five tasks"] == [f"{dot.score:.3f}".lstrip("0") for dot in compared]
    stored = [f"{dots['full'].megabytes:.0f} MB", *(f"{dot.megabytes:.2f} MB" for dot in compared[1:])]
    assert rows["stored a task, without its head"] == stored


def _cells(text: str) -> list[list[str]]:
    return [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]


def test_scores_are_means_of_seeds_between_their_extremes() -> None:
    dots = pictures.quality_dots()
    assert len(dots) >= 8
    assert all(dot.least <= dot.score <= dot.most for dot in dots)
    assert statistics.mean(dot.megabytes for dot in dots if dot.method in ("sam", "random")) < 1


def test_the_terminal_shows_its_commands_and_fetches_nothing() -> None:
    text = (pictures.IMAGES / "terminal.svg").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\xa0", " ")
    for command in terminal_picture.COMMANDS:
        assert command.split(" --")[0] in shown, command
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_picture_is_there_and_says_what_it_shows(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for source in re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text):
        assert (page.parent / source).is_file(), source
    for tag in re.findall(r"<img [^>]+>", text):
        assert re.search(r"alt=\"[^\"]{20,}\"", tag), tag
    for alt, source in re.findall(r"!\[([^\]]*)\]\(([^)#]+)", text):
        assert len(alt) >= 20 and (page.parent / source).is_file(), source
