"""What deploy/ holds is what it says: sound by the published schemas, and in step with the service itself."""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.auth.authenticator import PUBLIC
from serving.request.metrics import Metrics
from serving.settings import Settings, read_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
# Of files of Kustomize, values of a chart and objects of the Prometheus operator kubernetes-validate has no schema.
FOREIGN = ("kustomization.yaml", "adapter-values.yaml", "monitor.yaml")
KUBERNETES = [path for path in sorted(DEPLOY.glob("kubernetes/**/*.yaml")) if path.name not in FOREIGN]
BASE, CLUSTER = DEPLOY / "kubernetes" / "base", DEPLOY / "kubernetes" / "cluster"
OVERLAYS = [DEPLOY / "kubernetes", DEPLOY / "kubernetes" / "gpu", CLUSTER]  # what `kubectl apply -k` is given


def documents(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def replica() -> dict[str, Any]:
    (found,) = documents(BASE / "statefulset.yaml")
    return found


def container() -> dict[str, Any]:
    (found,) = replica()["spec"]["template"]["spec"]["containers"]
    return found


def settings_of(variables: dict[str, str]) -> Settings:
    """What the service itself makes of a manifest's variables."""
    return read_settings({name: value for name, value in variables.items() if name.startswith("SPARSEHUB_")})


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_kubernetes_takes_it(path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: pip install '.[deploy]'")
    if path.parent.name == "gpu":
        pytest.skip("a patch, which is no object by itself")
    for document in documents(path):
        validate.validate(document, "1.33", strict=True)


def test_compose_takes_it() -> None:
    pytest.importorskip("check_jsonschema", reason="needs check-jsonschema: pip install '.[deploy]'")
    import jsonschema

    vendored = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text()), json.loads(vendored.read_text()))


def test_a_replica_asks_for_keys_and_follows_a_catalogue() -> None:
    settings = settings_of({entry["name"]: entry["value"] for entry in container()["env"]})
    assert settings.keys and not settings.open and settings.catalog and settings.hub
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert settings.keys.startswith(mounts["keys"])
    variables = {entry["name"]: entry["value"] for entry in container()["env"]}
    assert all(variables[name].startswith(mounts["cache"]) for name in ("SPARSEHUB_CACHE", "HF_HOME"))
    claims = {claim["metadata"]["name"] for claim in replica()["spec"]["volumeClaimTemplates"]}
    volumes = {volume["name"] for volume in replica()["spec"]["template"]["spec"]["volumes"]}
    assert set(mounts) == claims | volumes


def test_probes_ask_what_needs_no_key_and_a_drain_has_its_time() -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"]["path"] in PUBLIC
    grace = replica()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    waited = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace > waited + settings_of({e["name"]: e["value"] for e in container()["env"]}).timeout


def test_selectors_and_ports_meet() -> None:
    labels = replica()["spec"]["template"]["metadata"]["labels"]
    names = {port["name"] for port in container()["ports"]}
    services = documents(BASE / "service.yaml")
    for service in services:
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    assert replica()["spec"]["serviceName"] in {service["metadata"]["name"] for service in services}
    for folder in (BASE, *OVERLAYS):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        for resource in kustomization["resources"] + [patch["path"] for patch in kustomization.get("patches", [])]:
            assert (folder / resource).exists()
            assert (folder / resource).resolve() not in folder.parents, "Kustomize takes no base around its overlay"


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_an_overlay_builds_and_kubernetes_takes_what_it_makes(overlay: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, which has Kustomize inside")
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: pip install '.[deploy]'")
    built = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=False)
    assert not built.returncode, built.stderr
    found = {document["kind"]: document for document in yaml.safe_load_all(built.stdout)}
    for kind in found.keys() - {"ServiceMonitor"}:
        validate.validate(found[kind], "1.33", strict=True)
    (one,) = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in one["env"]}
    assert settings_of(variables).device == ("cuda" if overlay.name == "gpu" else "auto")
    assert ("HorizontalPodAutoscaler" in found) == (overlay == CLUSTER)


def test_a_gpu_replica_has_one_gpu_and_settings_that_the_service_knows() -> None:
    (patch,) = documents(DEPLOY / "kubernetes" / "gpu" / "statefulset.yaml")
    (one,) = patch["spec"]["template"]["spec"]["containers"]
    assert one["resources"]["limits"]["nvidia.com/gpu"] == 1
    merged = {entry["name"]: entry["value"] for entry in [*container()["env"], *one["env"]]}
    assert settings_of(merged).device == "cuda"


def test_compose_is_in_step_with_its_own_files() -> None:
    compose = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())
    services = compose["services"]
    settings = settings_of(services["sparsehub"]["environment"])
    assert settings.keys == "/run/secrets/keys" and settings.catalog == "/hub#production" and not settings.open
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source == "../hub" or (DEPLOY / source).exists(), source
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["sparsehub:3000"]
    assert Path(job["authorization"]["credentials_file"]).name in services["prometheus"]["secrets"]


def test_a_cluster_scales_and_watches_what_there_is() -> None:
    (scaler,), (monitor,), (network,) = (documents(CLUSTER / f"{n}.yaml") for n in ("autoscaler", "monitor", "network"))
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (replica()["kind"], replica()["metadata"]["name"])
    (rule,) = yaml.safe_load((CLUSTER / "adapter-values.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    registry = Metrics().registry
    assert rule["name"]["matches"].strip("^$").removesuffix("_sum") in {family.name for family in registry.collect()}
    service, _ = documents(BASE / "service.yaml")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert network["spec"]["podSelector"]["matchLabels"].items() <= service["spec"]["selector"].items()


def test_a_read_only_root_leaves_room_for_what_is_written() -> None:
    assert container()["securityContext"]["readOnlyRootFilesystem"]
    written = [entry["value"] for entry in container()["env"] if entry["name"] in ("BENTOML_HOME", "SPARSEHUB_CACHE")]
    mounts = [mount["mountPath"] for mount in container()["volumeMounts"] if not mount.get("readOnly")]
    assert len(written) == 2 and all(any(path.startswith(mount) for mount in mounts) for path in written)


@pytest.mark.parametrize(
    ("given", "runs"),
    [
        (["serve"], "python -m bentoml serve serving.service:SparsehubService"),
        (["serve", "--port", "3001"], "python -m bentoml serve serving.service:SparsehubService --port 3001"),
        (["--backbone", "a b"], "sparsehub serve --backbone a b"),
        ([], "sparsehub serve"),
    ],
)
def test_an_image_takes_what_compose_and_kubernetes_give_it_and_flags(
    tmp_path: Path, given: list[str], runs: str
) -> None:
    for name in ("python", "sparsehub"):
        (tmp_path / name).write_text('#!/bin/sh\necho "${0##*/}" "$@"\n')
        (tmp_path / name).chmod(0o755)
    told = subprocess.run(
        ["/bin/sh", DEPLOY / "entrypoint.sh", *given], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert told.stdout.strip() == runs and container()["args"] == ["serve"]


def test_the_image_runs_as_the_user_of_the_manifests_and_copies_what_it_builds() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert f"USER {replica()['spec']['template']['spec']['securityContext']['runAsUser']}" in lines
    stages = [line.split(" AS ")[1] for line in lines if line.startswith("FROM ")]
    assert {"cpu", "gpu", "all"} <= set(stages) and stages[-1] == "cpu", "the default is the last"
    copied = [line.split("--from=")[1].split()[0] for line in lines if "--from=" in line]
    assert set(copied) <= set(stages)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.\[([\w,]+)\]", "\n".join(lines))[-1].split(",")) <= set(extras)
