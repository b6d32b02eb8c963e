"""What `sparsehub serve` checks before anything starts: every wrong argument alone is an error that names it."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from serving.preflight import HUB_SECONDS, check_address, check_settings
from serving.settings import FLAGS, VARIABLES, Settings
from sparsehub.errors import UsageError
from sparsehub.hub import open_hub
from sparsehub.settings import errors_named


@pytest.fixture(scope="module")
def place(suite: Mapping[str, Path], tiny_tasks: Any, speakers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone and a hub that are right, and many things that are not."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "bert").symlink_to(tiny_tasks.folder)
    (folder / "other").symlink_to(speakers.write("talk", "text-generation", seed=1))
    open_hub(folder / "hub").publish(suite["three"])
    for name in ("empty", "noweights"):
        (folder / name).mkdir()
    (folder / "noweights" / "config.json").write_text("{}")
    (folder / "packed").mkdir()
    table = struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 8, 0, 0)
    (folder / "packed" / "tiny.gguf").write_bytes((b"GGUF" + table).ljust(96, b"\0"))
    (folder / "bad.json").write_text("{bad")
    (folder / "file").write_text("")
    return folder


WRONG = [
    ({"backbone": "./nowhere"}, "--backbone: there is no backbone folder"),
    ({"backbone": "nobody/nothing"}, "--backbone: the backbone 'nobody/nothing' is neither a folder nor"),
    ({"backbone": "noweights"}, "--backbone: .*holds no safetensors weights"),
    ({"revision": "main"}, "--backbone: bert is a folder, which has no revisions; to do: leave out --revision"),
    ({"hub": "nohub"}, "--hub: there is no hub at"),
    ({"hub": "empty"}, "--hub: .*holds no task; to do: push one"),
    ({"hub": "file"}, "--hub: a hub is a folder"),
    ({"hub": "ftp://x"}, "--hub: packages cannot live there"),
    ({"tasks": "thre"}, "--task: unknown task 'thre', did you mean 'three'"),
    ({"tasks": "three@9"}, "--task: three has no version '9'"),
    ({"tasks": "./three", "hub": None}, "--task: './three' is no package folder, and no hub .*; to do: give --hub"),
    ({"tasks": "other"}, "--task: talk@1.0.0 changes .* of another backbone; found: bert; expected: .*--backbone"),
    ({"backbone": "packed", "tasks": "three"}, "--task: three@1.0.0 changes .* of another backbone; found: packed"),
    ({"policy": "nowhere.yaml"}, "--policy: nowhere.yaml cannot be read"),
    ({"policy": "bad.json"}, "--policy: bad.json cannot be read"),
    ({"keys": "nowhere.json"}, "--keys: there is no file nowhere.json; to do: make it: sparsehub keys add"),
    ({"keys": "bad.json"}, "--keys: the key file is not valid JSON"),
    ({"keys": "empty"}, "--keys: .*empty cannot be used"),
    ({"catalog": "nowhere.json"}, "--catalog: there is no catalogue at nowhere.json"),
    ({"catalog": "bad.json"}, "--catalog: the catalogue is not valid JSON"),
    ({"catalog": "hub#nowhere"}, "--catalog: there is no catalogue at hub#nowhere"),
    ({"device": "gpu"}, "--device: no such device; found: gpu; expected: auto, cpu, cuda or cuda:1"),
    ({"device": "cuda:99"}, "--device: no such device here; found: cuda:99; expected: cpu"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_argument_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = Settings(**{"backbone": "bert", "hub": "hub", **change})
    with errors_named(FLAGS), pytest.raises(UsageError, match=message):
        check_settings(settings)


def test_what_is_right_is_accepted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    right: list[dict[str, Any]] = [{}, {"hub": "hub"}, {"hub": "hub", "tasks": "three@1.0.0"}, {"device": "cpu"}]
    for settings in right:
        check_settings(Settings("bert", **settings))


def test_a_catalogue_that_is_gone_is_served_from_its_last_good_state(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.catalog import Catalog, open_catalog
    from serving.catalog.storage import last_good_file

    monkeypatch.chdir(place)
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path))
    copy = last_good_file(open_catalog("hub#nowhere"))
    copy.parent.mkdir(parents=True)
    copy.write_bytes(Catalog().to_bytes())
    check_settings(Settings("bert", hub="hub", catalog="hub#nowhere"))


def test_a_hub_that_does_not_answer_is_given_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("serving.preflight.HUB_SECONDS", 0.2)
    assert HUB_SECONDS < 8, "a wrong argument is told within ten seconds"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in {
            "AWS_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "c",
        }.items():
            monkeypatch.setenv(name, value)
        with errors_named(VARIABLES), pytest.raises(UsageError, match="SPARSEHUB_HUB: s3://models does not answer"):
            check_settings(Settings("bert", hub="s3://models"))


def test_the_address_is_one_that_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be listened on; .*give another --port"):
            check_address("127.0.0.1", port)
    assert check_address("localhost", port) == "127.0.0.1"
    with pytest.raises(UsageError, match="--host is no IP address; found: somewhere"):
        check_address("somewhere", port)
    for wrong in (0, 65536):
        with pytest.raises(UsageError, match="--port is out of range"):
            check_address("127.0.0.1", wrong)


def test_nothing_of_it_loads_torch(place: Path) -> None:
    """Or a wrong setting would be told seconds later."""
    code = (
        "import sys; from serving.preflight import check_settings; from serving.settings import Settings; "
        "check_settings(Settings('bert', hub='hub', tasks='three')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=place, check=True)
