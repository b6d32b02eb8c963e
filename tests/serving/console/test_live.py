"""The tabs Tasks and Live: what the table sorts by, and lines that go on at rest."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from serving.console import history
from serving.console.history import History, axis_top
from serving.console.tab_live import state_of
from serving.console.task_table import COLUMNS, row_of, table_of, where_text

START = datetime(2026, 1, 1)


def task(name: str, requests: int, **more: Any) -> dict[str, Any]:
    state = {
        "id": name,
        "digest": f"sha256:{name}",
        "role": None,
        "where": "device",
        "pinned": False,
        "bytes": 3 << 20,
        "nnz": 12_345,
        "kind": "text-classification",
        "requests": requests,
        "items": requests,
        "failed": 0,
        "last_used": 100.0,
        "p50_ms": 2.5,
        "p99_ms": 1234.56,
    }
    return {**state, **more}


def looked(*counts: dict[str, int]) -> History:
    """A page that was open while tasks answered so many requests in all."""
    past = History()
    for second, names in enumerate(counts):
        past.look([task(name, count) for name, count in names.items()], START + timedelta(seconds=2 * second))
    return past


def test_a_task_that_rests_is_at_zero_in_every_chart() -> None:
    past = looked({"a": 0, "b": 0}, {"a": 4, "b": 0}, {"a": 4, "b": 2}, {"a": 4, "b": 2})
    values = {
        chart: {name: [v for _, one, v in past.series(chart) if one == name] for name in ("a", "b")}
        for chart in (history.THROUGHPUT, history.P50)
    }
    assert values[history.THROUGHPUT] == {"a": [2.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0]}
    assert values[history.P50] == {"a": [2.5, 0.0, 0.0], "b": [0.0, 2.5, 0.0]}
    assert [v for _, name, v in past.series(history.THROUGHPUT) if name == history.ALL] == [2.0, 1.0, 0.0]


def test_nothing_was_asked_until_a_task_answers_while_the_page_is_open() -> None:
    assert not looked({"a": 7}, {"a": 7}).asked
    assert looked({"a": 7}, {"a": 8}, {"a": 8}).asked
    assert looked({"a": 7}, {"a": 7}).busiest == []


def test_who_asks_what_a_task_is_makes_no_traffic() -> None:
    past = History()
    for requests, items, failed in ((0, 0, 0), (5, 0, 0), (6, 3, 0), (7, 3, 1)):
        past.look([task("a", requests, items=items, failed=failed)], START + timedelta(seconds=requests))
    assert [value > 0 for _, name, value in past.series(history.THROUGHPUT) if name == "a"] == [False, True, True]


def test_a_line_keeps_its_colour_for_as_long_as_it_is_shown() -> None:
    past, counts = History(), dict.fromkeys((f"t{i}" for i in range(30)), 0)
    before: dict[str, str] = {}
    for second in range(400):
        counts[f"t{(second // 40) % 30}"] += 3
        past.look([task(name, count) for name, count in counts.items()], START + timedelta(seconds=2 * second))
        colours = {name: past.colours()[name] for name in past.busiest}
        assert len(set(colours.values())) == len(colours) <= history.BUSIEST, "told apart"
        assert all(colours[name] == colour for name, colour in before.items() if name in colours), "and kept"
        before = colours
    assert len(past._colours) <= history.BUSIEST + 1


def test_an_axis_is_divided_by_whole_numbers() -> None:
    tops = {value: axis_top([value]) for value in (0.0, 0.5, 5.0, 5.1, 11.0, 26.0, 99.0, 251.0)}
    assert tops == {0.0: 5, 0.5: 5, 5.0: 5, 5.1: 10, 11.0: 25, 26.0: 50, 99.0: 100, 251.0: 500}
    assert axis_top([]) == 5


def test_the_table_sorts_by_numbers_and_says_what_the_places_are() -> None:
    rows = [
        row_of(task("a@1", 1_000), "cuda:0", 160.0),
        row_of(task("b@1", 9, where="host", bytes=0, nnz=None, kind=None, last_used=None, p50_ms=None), "cpu", 160.0),
    ]
    table = table_of(rows)
    assert table["headers"] == list(COLUMNS) and len(table["data"][0]) == len(COLUMNS)
    texts, values = table["metadata"]["display_value"], table["data"]
    assert texts[0][:5] == ["a@1", "served", "device (cuda:0)", "text-classification", "12,345"]
    assert texts[0][6:] == ["1,000", "0", "1 min ago", "2.5", "1234.6", "a@1"]
    assert values[0][4:9] == [12_345, 3 << 20, 1_000, 0, 100.0]
    assert texts[1][2:6] == ["host", "not read yet", "", ""] and texts[1][8:10] == ["never", ""]
    assert values[1][4] < 0 and values[1][9] < 0, "what is not known sorts below everything"
    assert "device (cuda:0)" in where_text("cuda:0")


def test_a_table_that_says_the_same_is_left_alone_and_charts_share_their_time() -> None:
    past = History()
    shown, rows = state_of([task("a@1", 0, last_used=None)], "cpu", past, [])
    again, _ = state_of([task("a@1", 0, last_used=None)], "cpu", past, rows)
    assert "data" in shown[0] and "data" not in again[0]
    limits = [chart.x_lim for chart in again[2:]]
    assert all(limit == limits[0] for limit in limits) and limits[0][1] - limits[0][0] == 300
    assert [chart.visible for chart in again[2:]] == [False, False, False, True, True] and again[1].visible
