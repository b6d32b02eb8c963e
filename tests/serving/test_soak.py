"""`make soak`: everything at once, for minutes. Moving and reloaded versions, evictions, clients that err, dawdle or
hurry off, attackers, a damaged catalogue, flipped bits, a hub that hangs or lies, a full disk: nothing answered wrongly
but while a bit is flipped, no 5xx but those that were injected, memory and disk flat, the arena exact, and all as it
was afterwards. SPARSEHUB_SOAK_SECONDS says for how long (120; a release is tried for 3600)."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.catalog import Catalog, CatalogEntry, CatalogTarget
from sparsehub.engine import Budgets
from sparsehub.hub import locations, open_hub, retry
from tests.support.hub_servers import s3
from tests.support.soak_acts import TASKS, TEXTS, VERSIONS, Soak, World
from tests.support.soak_faults import FAULTS, Proxy, small_disk

SECONDS = float(os.environ.get("SPARSEHUB_SOAK_SECONDS", "120"))
HUB = "s3://bucket/soak"
DISK_MEBIBYTES = 8
log = logging.getLogger("soak")
pytestmark = [pytest.mark.slow, pytest.mark.soak(only=True)]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to a hub in a bucket, with less patience than users have: a fault is over in seconds."""
    monkeypatch.setattr(locations, "_TIMEOUTS", {"connect_timeout": "1s", "read_timeout": "1s", "timeout": "5s"})
    monkeypatch.setattr(locations, "_RETRIES", {**locations._RETRIES, "retry_timeout": timedelta(seconds=2)})
    monkeypatch.setattr(retry, "GIVE_UP", 2.0)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 1.0)
    with s3.served() as address:
        proxy = Proxy(address)
        settings = {"ENDPOINT_URL": proxy.address, "ALLOW_HTTP": "true", "REGION": "us-east-1"}
        for name, value in {**settings, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield proxy
        proxy.close()


@pytest.fixture
def world(
    line: Proxy, new_server: Callable[..., Any], tiny_tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A server that follows a catalogue, with a budget for a part of it, and its cache on a disk of its own."""
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "disk" / "cache"))
    where, expected, targets = tmp_path / "catalog.json", {}, {}
    for number, (task, version) in enumerate((t, v) for t in TASKS for v in VERSIONS):
        package = tiny_tasks.write(task, labels=2 + number % 4, version=version, seed=70 + number)
        found, reference = open_hub(HUB).publish(package), tiny_tasks.reference(package)
        targets.setdefault(task, {})[version] = CatalogTarget(version, found.digest)
        expected |= {(found.digest, text): reference(text) for text in TEXTS}
    where.write_bytes(Catalog(1, {task: CatalogEntry(targets[task]["1.0.0"]) for task in TASKS}).to_bytes())
    budgets = Budgets(60_000, loaders=4)
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk", mebibytes=DISK_MEBIBYTES))
        server = stack.enter_context(new_server(start=True, catalog=str(where), hub=HUB, budgets=budgets))
        yield World(server, where, tmp_path / "disk" / "cache", targets, expected, line, disk)


def test_minutes_of_everything(world: World) -> None:
    it = Soak(world, SECONDS)
    acts = [it.ask] * 4 + [it.beat, it.err, it.dawdle, it.hurry_off, it.attack]
    acts += [it.move, it.reload, it.damage, it.forget, it.spoil_the_hub, it.flip_a_bit]
    if world.disk is None:
        log.warning("no full disk: this process may not mount one")
    else:
        acts.append(it.fill_the_disk)
    grown = run(it, acts)
    usage, arena = world.server.engine.usage, world.server.engine.arena
    checks = f"{usage.evictions} evictions, {usage.loads} loads, {arena.checks} looks at the arena"
    found = f"{arena.failures} found damaged, {arena.repairs} repaired"
    log.warning("%s, %s, memory x %.3f, %s, %s", dict(it.statuses), dict(it.acts), grown, checks, found)
    assert it.wrong == [] and arena.failures == arena.repairs > 0
    assert it.statuses[200] > 100 and it.statuses[503] > 0 and usage.evictions > 10 and grown < 1.1
    assert all(it.acts[act.__name__] for act in acts) and (SECONDS < 600 or all(it.acts[fault] for fault in FAULTS))
    recovers(it)


def run(it: Soak, acts: list[Callable[[Any], None]]) -> float:
    """Every act in a thread of its own for as long as it takes; by how much memory grew in the last two thirds. What
    lies on disk is within the bounds of the cache's own small disk, or has not grown."""
    with ThreadPoolExecutor(len(acts)) as pool:
        running = [pool.submit(it.repeat, act, seed) for seed, act in enumerate(acts)]
        it.over.wait(it.seconds / 3)
        before, stored = resident_bytes(), stored_bytes(it.world.where.parent)
        it.over.wait(it.seconds * 2 / 3)
        after, stores = resident_bytes(), stored_bytes(it.world.where.parent)
        it.over.set()
        for one in running:
            one.result(120)
    assert stores <= max(stored * 1.1, DISK_MEBIBYTES << 20), f"{stored} bytes on disk, then {stores}"
    return after / before


def stored_bytes(folder: Path) -> int:
    """Of all files below a folder, as far as they are still there."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.lstat().st_size
    return total


def resident_bytes() -> int:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def recovers(it: Soak) -> None:
    """Nothing is refused any more, every task answers rightly, nothing waits, and the whole arena is what it was."""
    world, server = it.world, it.world.server
    before = it.statuses[200]
    server.until(lambda: not server.reconciler.refused and server.reconciler.follower.error is None)
    for task in server.reconciler.served:
        answer = server.post("/v1/classify", model=task, input=TEXTS)
        assert answer.status_code == 200, answer.text
        it._judge(answer, TEXTS, 0.0)
    assert it.wrong == [] and it.statuses[200] - before == len(server.reconciler.served) > 0
    server.until(lambda: server.engine.waiting == 0 and server.reconciler.draining == 0)
    assert server.engine.arena.check_all() and world.server.engine.healthy
