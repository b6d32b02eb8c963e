"""A hub with a card that means harm, and an endpoint with keys, a catalogue and the console."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.auth import Authenticator
from serving.catalog import Catalog, CatalogEntry, CatalogTarget
from sparsehub.hub import open_hub
from sparsehub.package import read_package
from sparsehub.package.plots import draw_pictures
from sparsehub.package.summary import summarize
from tests.support.console_browser import CHROMIUM, FLAGS, Visit
from tests.support.console_users import CARD, RING
from tests.support.packages import write_bare_package


@pytest.fixture(scope="module")
def hub(tiny_tasks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, CatalogTarget]]:
    """Four tasks, one in two versions, one with a card that means harm."""
    folder, targets = tmp_path_factory.mktemp("hub"), {}
    made = {
        "pair": tiny_tasks.write("pair", fields=("premise", "hypothesis"), seed=4),
        "tagged": tiny_tasks.write("tagged", "token-classification", seed=6),
        "three2": tiny_tasks.write("three", labels=4, version="2.0.0", seed=9),
    }
    sound, made["three"] = read_package(tiny_tasks.write("three", seed=5)), folder / "harmful"
    pictures = draw_pictures(summarize(sound.manifest), None)
    draft = dataclasses.replace(sound.manifest, files={})
    write_bare_package(made["three"], draft, sound.delta, sound.head, CARD, pictures)
    for name, package in made.items():
        found = open_hub(folder / "hub").publish(package)
        targets[name] = CatalogTarget(found.version or "", found.digest)
    return folder / "hub", targets


@pytest.fixture(scope="module")
def served(hub: Any, new_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An endpoint with keys and a catalogue, and the console."""
    folder, targets = hub
    where = tmp_path_factory.mktemp("catalog")
    entries = {name: CatalogEntry(target) for name, target in targets.items() if name != "three2"}
    (where / "catalog.json").write_bytes(Catalog(1, entries).to_bytes())
    before, os.environ["SPARSEHUB_CACHE"] = os.environ.get("SPARSEHUB_CACHE"), str(where / "cache")
    with new_server(
        start=True, access=Authenticator(RING), catalog=str(where / "catalog.json"), hub=str(folder), console=True
    ) as server:
        yield server
    os.environ.pop("SPARSEHUB_CACHE")
    if before is not None:
        os.environ["SPARSEHUB_CACHE"] = before


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install -y --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, served: Any) -> Iterator[Callable[..., Visit]]:
    """visit(key, option=...): a page that is signed in. Nothing of it may break, or ask for anything elsewhere."""
    visits: list[Visit] = []

    def new(name: str, **options: Any) -> Visit:
        visits.append(Visit(browser, served, **options))
        visits[-1].sign_in(name)
        return visits[-1]

    yield new
    for it in visits:
        assert not it.broken, it.broken
        home = f"http://127.0.0.1:{served.port}/"
        assert [url for url in it.asked if not url.startswith((home, "data:", "blob:"))] == []
        it.context.close()
