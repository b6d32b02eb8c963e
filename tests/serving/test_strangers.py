"""What strangers may try: names that are not the endpoint's own, forged addresses, numbers without end, other packages
in place of those that were registered."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.datastructures import State

from serving.auth.authenticator import check_host, name_of
from serving.auth.sign_in import refusal
from serving.http_protocol import trust_proxies
from serving.preflight import check_settings
from serving.request.middleware import RequestMiddleware
from serving.settings import FLAGS, Settings, read_settings
from sparsehub.engine import Task
from sparsehub.errors import ForbiddenError, UnauthenticatedError, UsageError
from sparsehub.package import read_manifest, read_package
from sparsehub.settings import errors_named
from sparsehub.task_ref import TaskRef

OWN = ["localhost", "LOCALHOST:3000", "127.0.0.1", "127.0.0.1:3000", "[::1]:3000", "127.8.8.8", "localhost.", "[::1]"]
FOREIGN = ["evil.example", "evil.example:3000", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.7", "", "[::2]:1"]


@pytest.mark.parametrize("host", OWN)
def test_without_keys_this_machines_names_are_answered(host: str) -> None:
    check_host(Settings("b"), host.encode())


@pytest.mark.parametrize("host", FOREIGN)
def test_without_keys_no_other_name_is_answered(host: str) -> None:
    with (
        errors_named(FLAGS),
        pytest.raises(ForbiddenError, match=r"does not answer by this name.*give the name to --host"),
    ):
        check_host(Settings("b"), host.encode())
    check_host(Settings("b", keys="keys.json"), host.encode())  # a page of another name has no key
    check_host(Settings("b", open=True), host.encode())
    for guarded in (Settings("b", keys="k", host_names="models.example"), Settings("b", open=True, host_names="x")):
        with pytest.raises(ForbiddenError):
            check_host(guarded, host.encode())


def test_names_that_the_settings_give_are_answered_too() -> None:
    settings = read_settings({"SPARSEHUB_BACKBONE": "b", "SPARSEHUB_HOST_NAMES": "Models.Example,two"})
    for host in ("models.example", "MODELS.example:443", "two", "localhost"):
        check_host(settings, host.encode())
    assert name_of("[::1]:80") == "::1" and name_of("A.b.:1") == "a.b"


def test_a_page_whose_name_points_here_reaches_nothing(server: Any) -> None:
    for asked in ("GET /v1/models", "POST /v1/classify", "GET /metrics", "GET /openapi.json", "GET /console/"):
        method, path = asked.split()
        answer = server.client.request(method, path, headers={"host": "evil.example"}, json={"model": "three"})
        assert answer.status_code == 403, path
        assert "Host: evil.example" in answer.json()["error"]["message"]
    assert server.client.get("/v2/health/live", headers={"host": "10.0.0.7:3000"}).status_code == 200, "probes"
    assert server.client.get("/v1/models").status_code == 200


def test_no_answer_is_taken_for_another_kind_than_it_says_nor_shown_in_anothers_page(server: Any) -> None:
    for path in ("/v1/models", "/nowhere", "/v2/health/live", "/docs"):
        assert server.client.get(path).headers["x-content-type-options"] == "nosniff"
    page = server.client.get("/docs")
    assert page.status_code == 200 and page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["content-security-policy"] == "frame-ancestors 'none'"


def test_a_page_by_a_foreign_name_is_not_asked_for_a_key() -> None:
    scope = {"type": "http", "method": "GET", "path": "/console/"}
    assert refusal(scope, {}, ForbiddenError("not by this name")) is None
    asked = refusal(scope, {}, UnauthenticatedError("a key is needed"))
    assert asked is not None and asked.status_code == 401


# addresses


def trusted(monkeypatch: pytest.MonkeyPatch, proxies: str | None) -> Callable[[str, str], str]:
    """Whose address uvicorn and our middleware see: client(from, x_forwarded_for)."""
    environment = {} if proxies is None else {"SPARSEHUB_PROXIES": proxies}
    trust_proxies(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    config = uvicorn.Config(app, lifespan="off")
    config.load()

    def client(address: str, forwarded: str) -> str:
        scope = {"type": "http", "client": (address, 1), "headers": [(b"x-forwarded-for", forwarded.encode())]}
        asyncio.run(config.loaded_app(scope, None, None))  # type: ignore[arg-type]
        return seen.pop()

    return client


def test_no_one_may_say_where_a_request_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    client = trusted(monkeypatch, None)
    assert client("127.0.0.1", "10.0.0.9") == "127.0.0.1"
    assert client("10.0.0.5", "127.0.0.1") == "10.0.0.5"


def test_but_for_the_proxies_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    client = trusted(monkeypatch, "10.0.0.5,192.168.0.0/24")
    assert client("10.0.0.5", "203.0.113.9") == "203.0.113.9"
    assert client("192.168.0.77", "127.0.0.1, 203.0.113.9") == "203.0.113.9", "what the client itself has said is not"
    assert client("10.0.0.6", "203.0.113.9") == "10.0.0.6"
    assert client("127.0.0.1", "203.0.113.9") == "127.0.0.1"


@pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.0/33", "10.0.0.7/24", ""])
def test_a_proxy_is_an_address_or_a_network(proxy: str) -> None:
    with errors_named(FLAGS), pytest.raises(UsageError, match="--proxy"):
        Settings("b", proxies=(proxy,))


def test_an_address_that_is_none_is_not_kept(caplog: pytest.LogCaptureFixture, server: Any) -> None:
    state = State({"service": server.gate._state.service})
    transport = httpx.ASGITransport(RequestMiddleware(server.gate._app, state), client=("x" * 60_000, 1))

    async def ask() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/v1/models")).status_code

    with caplog.at_level(logging.INFO, "sparsehub"):
        assert asyncio.run(ask()) == 401, "it is not this machine"
    assert "xxx" not in caplog.text


# numbers


@pytest.mark.parametrize("digits", [4_000, 5_000, 100_000])
@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("field", ["seed", "max_tokens", "temperature", "top_p", "n", "logprobs", "prompt"])
def test_a_number_without_end_is_the_callers_error(language_server: Any, field: str, sign: str, digits: int) -> None:
    given = {"model": '"gruff"', "prompt": '"a"', field: sign + "9" * digits}
    body = "{" + ",".join(f'"{name}":{value}' for name, value in given.items()) + "}"
    answer = language_server.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and len(answer.text) < 2_000, answer.text[:300]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", '{"model":"three","input":"a","truncate_prompt_tokens":N}'),
        ("/v1/classify", '{"model":"three","input":"a","priority":N}'),
        ("/v1/embeddings", '{"model":"backbone","input":"a","dimensions":N}'),
        ("/v1/embeddings", '{"model":"backbone","input":[N]}'),
        ("/v1/rerank", '{"model":"backbone","query":"a","documents":["b"],"top_n":N}'),
        ("/v2/models/three/infer", '{"inputs":[{"name":"text","shape":[N],"datatype":"BYTES","data":["a"]}]}'),
        ("/v2/models/three/infer", '{"id":N,"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["a"]}]}'),
        ("/v1/classify", '{"model":N,"input":"a"}'),
        ("/v1/classify", '{"model":"three+three*N","input":"a"}'),
    ],
)
def test_so_it_is_in_every_other_body(server: Any, path: str, body: str) -> None:
    for number in ("9" * 4_000, "-" + "9" * 4_000, "9" * 5_000, "1e" + "9" * 4_000):
        sent = body.replace("N", number)
        answer = server.client.post(path, content=sent, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 404), (number[:5], answer.status_code, answer.text[:300])


# packages


def test_a_folder_that_holds_another_package_than_was_registered_is_refused(
    server: Any, tiny_tasks: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(tiny_tasks.write("moved", seed=50), folder)
    manifest = read_manifest(folder)
    server.engine.register(Task("moved", "1.0.0", manifest.digest, lambda: read_package(folder)))
    shutil.rmtree(folder)
    shutil.copytree(tiny_tasks.write("moved", version="2.0.0", seed=51), folder)
    answer = server.post("/v1/classify", model="moved", input="a")
    assert answer.status_code == 503 and "another one than when it was registered" in answer.text
    assert manifest.digest in answer.text
    shutil.rmtree(folder)
    shutil.copytree(tiny_tasks.write("moved-back", seed=52), folder)
    assert server.post("/v1/classify", model="moved", input="a").status_code == 503, "and again, by whatever is there"
    server.engine.remove(TaskRef("moved"))


def test_the_cache_is_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere/x")):
        monkeypatch.setenv("SPARSEHUB_CACHE", str(place))
        with (
            errors_named(FLAGS),
            pytest.raises(UsageError, match=r"the cache folder .* cannot be used; .*SPARSEHUB_CACHE"),
        ):
            check_settings(Settings("./nowhere"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path


def test_a_tilde_is_home_in_every_setting_that_is_a_path(home: Path) -> None:
    paths = ("backbone", "hub", "policy", "keys", "catalog", "tasks")
    given = {f"SPARSEHUB_{name.upper()}": f"~/{name}" for name in paths if name not in ("tasks",)}
    settings = read_settings(given)
    for name in paths[:-1]:
        assert getattr(settings, name) == str(home / name)
    assert read_settings({"SPARSEHUB_BACKBONE": "b", "SPARSEHUB_TASKS": "~/one,two"}).tasks == (f"{home}/one", "two")
    assert read_settings({"SPARSEHUB_BACKBONE": "~user/b"}).backbone == "~user/b"
