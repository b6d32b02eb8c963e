"""What an endpoint shows of itself: metrics, traces, the state of tasks, and a dashboard of what is there."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.request.logs import LineHandler
from serving.request.metrics import MOST, RECENT, TaskStats, percentile

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "sparsehub.json"


def samples(server: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def grown(server: Any, act: Callable[[], object]) -> Callable[..., float]:
    before = samples(server)
    act()
    after = samples(server)

    def by(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0.0) - before.get(key, 0.0)

    return by


def test_a_tasks_requests_tokens_and_time_are_counted(server: Any) -> None:
    def act() -> None:
        assert server.post("/v1/classify", model="seven", input=["the fox", "a dog"]).status_code == 200
        assert server.post("/v1/classify", model="seven", input=[""]).status_code == 400
        assert server.post("/v1/classify", model="three+seven*0.5", input="the fox").status_code == 200
        assert server.post("/v1/embeddings", model="backbone", input="the fox").status_code == 200

    by = grown(server, act)
    assert by("sparsehub_task_requests_total", task="seven", version="1.0.0", status="200") == 1
    assert by("sparsehub_task_requests_total", task="seven", version="1.0.0", status="400") == 1
    assert by("sparsehub_task_request_seconds_count", task="seven", version="1.0.0") == 2
    assert by("sparsehub_task_requests_total", task="(composed)", version="", status="200") == 1
    assert by("sparsehub_rows_total", task="(composed)", outcome="ok") == 1
    assert by("sparsehub_rows_total", task="(backbone)", outcome="ok") == 1
    expected = sum(len(server.engine.tokenizer(text)["input_ids"]) for text in ("the fox", "a dog"))
    assert by("sparsehub_task_tokens_total", task="seven") == expected
    for phase in ("queue", "forward", "head"):
        assert by("sparsehub_task_row_seconds_total", task="seven", phase=phase) > 0
    assert by("sparsehub_request_seconds_count", route="/v1/classify") == 3
    assert by("sparsehub_batch_tasks_count") >= 3


def test_waiting_for_weights_is_told_from_waiting_for_a_turn(halted: Callable[..., Any], suite: Any) -> None:
    from sparsehub.engine import Task
    from sparsehub.package import read_package

    server = halted()
    engine, package = server.engine, read_package(suite["three"])
    engine.remove("three")
    engine.register(Task("three", "1.0.0", package.digest, lambda: package))
    ticket = engine.classify("three", ["the fox"])
    server.until(lambda: engine.status()[-1].where == "device")
    while engine.step():
        pass
    assert ticket.futures[0].result(20).label
    found = samples(server)
    load = found["sparsehub_task_row_seconds_total", (("phase", "load"), ("task", "three"))]
    queue = found["sparsehub_task_row_seconds_total", (("phase", "queue"), ("task", "three"))]
    assert load >= 0 and queue > 0


def test_the_state_of_every_task(server: Any) -> None:
    server.post("/v1/classify", model="pair", input=[["the fox", "a dog"]] * 3)
    body = server.client.get("/v1/tasks").json()
    found = {task["name"]: task for task in body["data"]}
    pair = found["pair"]
    assert pair["id"] == "pair@1.0.0" and pair["where"] == "device" and pair["role"] is None
    assert pair["requests"] >= 1 and pair["items"] >= 3 and pair["failed"] == 0
    assert 0 < pair["p50_ms"] <= pair["p99_ms"] and pair["last_used"] > 1_600_000_000
    assert pair["bytes"] > 0 and pair["nnz"] > 0 and pair["references"] >= 0
    assert set(found) >= {"three", "seven", "pair", "rating", "choice", "words"}


def test_a_ledger_remembers_the_latest_and_forgets_the_least_recent() -> None:
    task_stats = TaskStats()
    for second in range(2 * RECENT):
        task_stats.note("a", 2, second % 2 == 0, float(second))
    found = task_stats.of("a")
    assert (found["requests"], found["items"], found["failed"]) == (2 * RECENT, 4 * RECENT, RECENT)
    assert found["p50_ms"] == (RECENT + RECENT // 2 - 1) * 1e3
    for number in range(MOST):
        task_stats.note(str(number), 1, False, 0.0)
    assert task_stats.of("a")["requests"] == 0 and task_stats.of("a")["p50_ms"] is None
    assert task_stats.of("0")["requests"] == 1


@pytest.mark.parametrize(("percent", "expected"), [(50, 2000.0), (99, 4000.0), (1, 1000.0), (100, 4000.0)])
def test_a_percentile_is_one_of_the_numbers(percent: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == expected
    assert percentile([], percent) is None


def test_the_dashboard_asks_for_metrics_and_labels_that_are_there(server: Any, language_server: Any) -> None:
    server.post("/v1/classify", model="three", input="the fox")
    board = json.loads(DASHBOARD.read_text())
    told = [one.client.get("/metrics").text for one in (server, language_server)]
    families = [family for text in told for family in text_string_to_metric_families(text)]
    labels: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    assert len(queries) > 20
    for query in queries:
        names = re.findall(r"\bsparsehub_\w+", query)
        assert names and set(names) <= set(labels), query
        grouped = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
        matched = set(re.findall(r"(\w+)(?:=~|!=|=)\"", query))
        assert grouped | matched <= set().union(*(labels[name] for name in names)), query
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in board["panels"]}) == len(places)
    used = {name for query in queries for name in re.findall(r"\bsparsehub_\w+", query)}
    shown = {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in used}
    ours = {family.name for family in families if re.match(r"sparsehub_.*(?<!_created)$", family.name)}
    assert ours - shown <= {"sparsehub_lookups"}, "a metric that no panel shows"


def test_a_trace_says_which_package_answered(server: Any) -> None:
    """As BentoML does it: its middleware opens the span, ours is inside."""
    import asyncio

    import httpx
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = OpenTelemetryMiddleware(server.gate, tracer_provider=provider)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/classify", json={"model": "three", "input": ["a", "b"]})

    response = asyncio.run(ask())
    assert response.status_code == 200, response.text
    spans = [span for span in exporter.get_finished_spans() if "sparsehub.digest" in (span.attributes or {})]
    assert len(spans) == 1
    assert spans[0].attributes["sparsehub.digest"] == response.json()["digest"]  # type: ignore[index]
    assert spans[0].attributes["sparsehub.items"] == 2  # type: ignore[index]


class Disk(io.StringIO):
    """A stream whose disk may be full."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_lines_that_a_full_disk_does_not_take_are_counted_and_stop_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    disk, logger = Disk(), logging.getLogger("sparsehub.test-full-disk")
    logger.propagate, logger.handlers = False, [LineHandler(disk)]
    logger.handlers[0].setFormatter(logging.Formatter("%(message)s"))
    logger.error("1")
    disk.full = True
    for _ in range(1000):
        logger.error("lost")
    disk.full = False
    logger.error("2")
    logger.error("3")
    first, lost, *rest = disk.getvalue().splitlines()
    assert (first, rest) == ("1", ["2", "3"])
    assert json.loads(lost)["event"] == "lines_lost" and json.loads(lost)["lines"] == 1000
    assert capsys.readouterr().err == "", "nor is another disk filled with tracebacks"
    with Path("/dev/full").open("w") as full:
        logger.handlers = [LineHandler(full)]
        for _ in range(100):
            logger.error("x" * 1000)
        with contextlib.suppress(OSError):
            full.close()
