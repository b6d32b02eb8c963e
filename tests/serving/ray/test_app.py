"""What `serve run serving.ray.app:app` is told, and what it makes of that: no Ray runs here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray", reason="Ray Serve needs ray (pip install 'sparsehub[ray]')")

from serving.ray.app import Scale, app, replica_options
from serving.settings import Settings, absolute
from sparsehub.errors import UsageError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """set_up(catalog=...): the environment of an endpoint with these settings."""

    def put(**settings: str) -> None:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in {"backbone": "tiny", **settings}.items():
            monkeypatch.setenv(f"SPARSEHUB_{name.upper()}", value)

    return put


def test_it_needs_a_catalogue(set_up: Callable[..., None]) -> None:
    set_up(hub="hub")
    with pytest.raises(UsageError, match=r"replicas need a catalogue.*SPARSEHUB_CATALOG"):
        app({})


def test_a_bound_of_memory_needs_a_number_of_tasks(set_up: Callable[..., None]) -> None:
    set_up(catalog="hub#it", device_mib="100")
    with pytest.raises(UsageError, match=r"100 MiB for tasks.*tasks=NUMBER"):
        app({"replicas": "2"})
    assert app({"replicas": "2", "tasks": "30"}) is not None


def test_the_console_is_for_one_process(set_up: Callable[..., None]) -> None:
    set_up(catalog="hub#it", console="True")
    with pytest.raises(UsageError, match="one process"):
        app({})


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"replica": "2"}, "did you mean 'replicas'"),
        ({"replicas": "many"}, "wrong type"),
        ({"replicas": "0"}, "at least 1"),
    ],
)
def test_an_argument_that_is_wrong_is_named(set_up: Callable[..., None], args: dict[str, str], says: str) -> None:
    set_up(catalog="hub#it")
    with pytest.raises(UsageError, match=says):
        app(args)


def test_replicas_come_and_go_between_two_numbers() -> None:
    settings = Settings("tiny", catalog="hub#it", device="cuda")
    options = replica_options(settings, Scale(replicas=2, max_replicas=8, requests=20))
    assert options["autoscaling_config"] == {"min_replicas": 2, "max_replicas": 8, "target_ongoing_requests": 10.0}
    assert options["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}
    fixed = replica_options(settings, Scale(replicas=3))
    assert fixed["num_replicas"] == 3 and "autoscaling_config" not in fixed


def test_paths_that_are_there_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica starts in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub").mkdir()
    found = absolute(Settings("org/model", catalog="./hub#it", keys="s3://bucket/keys"))
    assert (found.backbone, found.catalog, found.keys) == ("org/model", f"{tmp_path}/hub#it", "s3://bucket/keys")


def test_the_file_to_deploy_is_one_of_rays_and_its_arguments_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.schema import ServeDeploySchema

    found: Any = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "deploy/ray.yaml").read_text()))
    (application,) = found.applications
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for name, value in application.runtime_env["env_vars"].items():
        monkeypatch.setenv(name, value)
    assert app(application.args) is not None
