"""Whose packages an endpoint runs: its policy is asked at every load, and says no wherever it cannot say yes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from serving.catalog import Catalog, CatalogEntry, CatalogTarget, change_catalog, open_catalog
from serving.catalog.router import Router
from serving.settings import Settings
from serving.startup import start_catalog, start_engine
from sparsehub.engine import Engine
from sparsehub.errors import SparsehubError, TrustError, UsageError
from sparsehub.hub import open_hub
from sparsehub.package.signing import KeySigner, sign_package

pytest.importorskip("model_signing", reason="signatures need model-signing (pip install 'sparsehub[sign]')")

SIGNED, UNSIGNED = "three", "seven"
DEMANDING = "require_signature: true\ntrusted_keys: {team: team.pub}\n"
Start = Callable[..., Engine]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy that trusts one key, and nobody else."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (tmp_path / "team.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "team.pub").write_bytes(public)
    path = tmp_path / "policy.yaml"
    path.write_text(DEMANDING)
    return path


@pytest.fixture
def folders(suite: Mapping[str, Path], policy: Path, tmp_path: Path) -> dict[str, str]:
    """A signed package and one that is not, by name, as folders; `hub` has both."""
    copies = {name: shutil.copytree(suite[name], tmp_path / name) for name in (SIGNED, UNSIGNED)}
    sign_package(copies[SIGNED], KeySigner(policy.with_name("team.pem")))
    for copy in copies.values():
        open_hub(tmp_path / "hub").publish(copy)
    return {**{name: str(copy) for name, copy in copies.items()}, "hub": str(tmp_path / "hub")}


@pytest.fixture
def start(tiny_tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """start(tasks=, policy=): an engine as the service starts it."""
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))
    engines: list[Engine] = []

    def new(**settings: Any) -> Engine:
        engines.append(start_engine(Settings(backbone=str(tiny_tasks.folder), **settings)))
        return engines[-1]

    yield new
    for engine in engines:
        engine.stop(drain=5)


def answer(engine: Engine, task: str) -> Any:
    return engine.classify(task, ["a good film"]).futures[0].result(60)


@pytest.mark.parametrize("name", [SIGNED, UNSIGNED])
@pytest.mark.parametrize("from_hub", [True, False])
def test_an_endpoint_starts_with_what_its_policy_allows(
    start: Start, folders: dict[str, str], policy: Path, name: str, from_hub: bool
) -> None:
    given = {"hub": folders["hub"], "tasks": (name,)} if from_hub else {"tasks": (folders[name],)}
    if name == SIGNED:
        assert answer(start(policy=str(policy), **given), name)
    else:
        with pytest.raises(TrustError, match=r"seven@1\.0\.0 is not signed"):
            start(policy=str(policy), **given)
        assert answer(start(**given), name), "without a policy it may"


def test_of_a_whole_hub_only_what_the_policy_allows_ever_answers(
    start: Start, folders: dict[str, str], policy: Path
) -> None:
    engine = start(policy=str(policy), hub=folders["hub"])
    assert answer(engine, SIGNED)
    for composed in (UNSIGNED, f"{SIGNED}+{UNSIGNED}*0.5"):
        with pytest.raises(TrustError, match="is not signed"):
            answer(engine, composed)


def test_a_publisher_who_is_not_allowed_is_refused(start: Start, folders: dict[str, str], policy: Path) -> None:
    policy.write_text(DEMANDING + "publishers: [somebody-else]\n")
    with pytest.raises(TrustError, match="team may not publish here"):
        start(policy=str(policy), hub=folders["hub"], tasks=(SIGNED,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("require_signature: [", "cannot be read"),
        ("require_signatures: true", "did you mean 'require_signature'"),
        ("require_signature: yes please", "wrong type"),
        ("require_signature: true", "trusts nobody"),
        ("trusted_keys: {team: lost.pub}", "trusts a file that is not there"),
    ],
)
def test_a_policy_that_cannot_be_understood_stops_the_endpoint(
    start: Start, folders: dict[str, str], policy: Path, text: str | None, message: str
) -> None:
    policy.unlink() if text is None else policy.write_text(text)
    with pytest.raises(UsageError, match=message):
        start(policy=str(policy), hub=folders["hub"])


def test_a_policy_that_breaks_later_stops_every_load(start: Start, folders: dict[str, str], policy: Path) -> None:
    engine = start(policy=str(policy), hub=folders["hub"])
    policy.unlink()
    with pytest.raises(SparsehubError, match="cannot be read"):
        answer(engine, SIGNED)


def test_the_environment_names_a_policy_for_whatever_loads_packages(
    start: Start, folders: dict[str, str], policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEHUB_POLICY", str(policy))
    with pytest.raises(TrustError, match="is not signed"):
        start(hub=folders["hub"], tasks=(UNSIGNED,))


def test_of_a_catalogue_only_what_the_policy_allows_is_served(
    start: Start, folders: dict[str, str], policy: Path, tiny_tasks: Any
) -> None:
    location, hub = f"{folders['hub']}#production", open_hub(folders["hub"])
    entries = {name: CatalogEntry(CatalogTarget("1.0.0", hub.resolve(name).digest)) for name in (SIGNED, UNSIGNED)}
    change_catalog(open_catalog(location), lambda catalog: Catalog(catalog.revision + 1, entries))
    engine = start(policy=str(policy), catalog=location)
    settings = Settings(backbone=str(tiny_tasks.folder), policy=str(policy), catalog=location)
    reconciler = start_catalog(settings, engine, Router())
    assert reconciler is not None
    try:
        assert list(reconciler.served) == [SIGNED]
        assert isinstance(reconciler.refused[UNSIGNED], TrustError)
    finally:
        reconciler.stop()
