"""A team's life with a hub on the command line: find, show, tag, roll back, lock, sign, copy, compare, clean up."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sparsehub.package import read_manifest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def packages(tiny_tasks: Any, tmp_path: Path) -> dict[str, Path]:
    """Two tasks on one backbone."""
    made = {"three": tiny_tasks.write("three", labels=3, seed=1), "five": tiny_tasks.write("five", labels=5, seed=2)}
    return {name: shutil.copytree(folder, tmp_path / "packages" / name) for name, folder in made.items()}


@pytest.fixture
def hub(packages: dict[str, Path], tmp_path: Path, run: Any) -> Path:
    """Three versions of `three`, one of `five`."""
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        assert run("push", packages["three"], tmp_path / "hub", "--version", version).code == 0
    assert run("push", packages["five"], tmp_path / "hub").code == 0
    return tmp_path / "hub"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    private, public = tmp_path / "private.pem", tmp_path / "team.pub"
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret"))
    )
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def as_json(done: Any) -> Any:
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    return json.loads(done.out)


def failed(done: Any) -> str:
    assert done.code == 2 and "Traceback" not in done.err
    return done.err


def test_a_transfer_is_told_with_bytes_and_rate(run: Any, packages: dict[str, Path], tmp_path: Path) -> None:
    line = r"[\d.]+ KiB in [\d.]+ s, [\d.]+ [KMG]iB/s"
    assert re.search(f"publishing .*: {line}", run("push", packages["three"], tmp_path / "hub").err)
    assert re.search(f"fetching three: {line}", run("pull", "three", "--hub", tmp_path / "hub").err)
    assert run("pull", "three", "--hub", tmp_path / "hub").err == "", "nothing moved, nothing told"


def test_on_a_terminal_a_transfer_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    from sparsehub.cli import transfers

    screen = io.StringIO()
    monkeypatch.setattr(transfers, "errors", Console(file=screen, force_terminal=True, width=120))
    with transfers.transfer("fetching [x]") as report:
        report(512, 2048)
        report(2048, 2048)
    assert "fetching [x]" in screen.getvalue() and "2.0/2.0 KiB" in screen.getvalue()
    assert re.search(r"\d ([KMG]i)?B/s", screen.getvalue()), "the rate is in the bytes' own units"
    with transfers.transfer("nothing"):
        pass
    assert "nothing" not in screen.getvalue()


def test_ls_shows_the_newest_of_each_task_or_all(run: Any, hub: Path) -> None:
    def listed(*arguments: object) -> list[str]:
        return [f"{e['name']}@{e['version']}" for e in as_json(run("ls", hub, *arguments, "--json"))]

    assert listed() == ["five@1.0.0", "three@2.0.0"]
    assert listed("three") == ["three@1.0.0", "three@1.1.0", "three@2.0.0"]
    assert listed("--all") == ["five@1.0.0", "three@1.0.0", "three@1.1.0", "three@2.0.0"]
    assert "latest" in run("ls", hub).out
    assert "unknown task" in failed(run("ls", hub, "six"))


def test_search(run: Any, hub: Path) -> None:
    def found(*arguments: object) -> list[str]:
        return [f"{e['name']}@{e['version']}" for e in as_json(run("search", hub, *arguments, "--json"))]

    run("tag", "three@1.0.0", "stable", "--hub", hub)
    assert found() == ["five@1.0.0", "three@2.0.0"]
    assert found("thr") == ["three@2.0.0"]
    assert found("--backbone", "tiny/bert", "--kind", "text-classification", "--metric", "accuracy>=0.5") == found()
    assert found("--metric", "accuracy>0.5") == []
    assert found("--tag", "stable") == ["three@1.0.0"]
    assert found("three", "--all") == ["three@1.0.0", "three@1.1.0", "three@2.0.0"]
    assert "nothing fits" in run("search", hub, "--kind", "regression").out


def test_show(run: Any, hub: Path, packages: dict[str, Path]) -> None:
    found = as_json(run("show", "three@1.1.0", "--hub", hub, "--json"))
    assert found["manifest"]["version"] == "1.1.0"
    assert "three@1.1.0" in found["card"] and "three@1.0.0" not in found["card"], "pushed under another version"
    assert as_json(run("show", "three@1.0.0", "--hub", hub, "--json"))["card"] == "# three\n"
    assert (found["channels"], found["signed"]) == ([], False)
    shown = run("show", "three", "--hub", hub).out
    for text in ("three@2.0.0", found["manifest"]["backbone"]["fingerprint"], "latest", "encoder.layer 1", "accuracy"):
        assert text in shown
    assert "three" in run("show", "three", "--hub", hub, "--card").out
    assert not (Path(os.environ["SPARSEHUB_CACHE"]) / "packages").exists(), "no weight was fetched"


def test_tag_and_rollback(run: Any, hub: Path) -> None:
    def points_at() -> str:
        return as_json(run("show", "three@stable", "--hub", hub, "--json"))["manifest"]["version"]

    for version in ("1.0.0", "1.1.0", "2.0.0"):
        done = as_json(run("tag", f"three@{version}", "stable", "--hub", hub, "--json"))
        assert (done["name"], done["tag"], done["version"]) == ("three", "stable", version)
    assert points_at() == "2.0.0"
    assert as_json(run("rollback", "three", "stable", "--hub", hub, "--json"))["version"] == "1.1.0"
    assert "1.0.0" in run("rollback", "three", "stable", "--hub", hub).out
    assert points_at() == "1.0.0"
    assert "pointed at nothing before this" in failed(run("rollback", "three", "stable", "--hub", hub))
    assert "moved meanwhile" in failed(run("tag", "three@2.0.0", "stable", "--hub", hub, "--expect", "1.1.0"))
    assert run("tag", "three@2.0.0", "stable", "--hub", hub, "--expect", "1.0.0").code == 0
    assert run("tag", "three@1.1.0", "1.1", "--hub", hub).code == 0
    assert "was published before" in failed(run("tag", "three@2.0.0", "1.1", "--hub", hub))


def test_lock_pins_and_refuses_what_changed(run: Any, hub: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    locked = as_json(run("lock", "three@1.1.0", "five", "--hub", "hub", "--json"))
    assert [(pin["name"], pin["version"]) for pin in locked["tasks"]] == [("five", "1.0.0"), ("three", "1.1.0")]
    assert locked["hub"] == "hub"
    assert run("lock", "--check").code == 0
    pulled = as_json(run("pull", "--lock", "sparsehub.lock", "--json"))
    assert [line["version"] for line in pulled] == ["1.0.0", "1.1.0"]
    assert as_json(run("pull", "three", "--lock", "sparsehub.lock", "--json"))["version"] == "1.1.0"
    tag = hub / "tags/three/1.1.0"
    tag.write_bytes((hub / "tags/three/2.0.0").read_bytes())
    other = json.loads(tag.read_bytes())["digest"]
    for arguments in (["lock", "--check"], ["lock", "three@1.1.0"], ["pull", "--lock", "sparsehub.lock"]):
        told = failed(run(*arguments))
        assert other in told and pulled[1]["digest"] in told


def test_the_hub_of_a_lock_file_comes_before_the_variable(
    run: Any, hub: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEHUB_HUB", "hub")
    assert as_json(run("lock", "three@1.1.0", "--json"))["hub"] == "hub"
    monkeypatch.setenv("SPARSEHUB_HUB", "nowhere")
    assert run("lock", "--check").code == run("lock", "five").code == 0
    assert as_json(run("lock", "--check", "--json"))["hub"] == "hub"
    assert len(as_json(run("pull", "--lock", "sparsehub.lock", "--json"))) == 2
    assert "nowhere" in failed(run("pull", "three"))


def test_a_package_folder_is_signed_in_its_place_whatever_the_variable_says(
    run: Any, hub: Path, packages: dict[str, Path], keys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SIGNING_KEY_PASSWORD", "secret")
    monkeypatch.setenv("SPARSEHUB_HUB", str(hub))
    assert as_json(run("sign", packages["five"], "--key", keys[0], "--json"))["hub"] is None
    assert as_json(run("sign", "three@1.0.0", "--key", keys[0], "--json"))["hub"] == str(hub)
    assert as_json(run("show", "three@1.0.0", "--json"))["signed"]


def test_sign_verify_and_policies(run: Any, hub: Path, packages: dict[str, Path], keys: Any, tmp_path: Path) -> None:
    private, public = keys
    with pytest.MonkeyPatch.context() as patch:
        assert "cannot be signed" in failed(run("sign", packages["five"], "--key", private))
        patch.setenv("SIGNING_KEY_PASSWORD", "secret")
        assert run("sign", packages["five"], "--key", private).code == 0
        signed = as_json(run("sign", "three@1.0.0", "--hub", hub, "--key", private, "--json"))
    assert signed["digest"] == as_json(run("show", "three@1.0.0", "--hub", hub, "--json"))["digest"]
    assert as_json(run("show", "three@1.0.0", "--hub", hub, "--json"))["signed"]
    found = as_json(run("verify", packages["five"], "--key", public, "--json"))
    assert found["publisher"] == "team"
    assert "signed by team" in run("verify", "three@1.0.0", "--hub", hub, "--key", public).out
    assert "is not signed" in failed(run("verify", "three@1.1.0", "--hub", hub, "--key", public))
    policy = tmp_path / "policy.yaml"
    policy.write_text("require_signature: true\ntrusted_keys: {team: team.pub}\n")
    assert as_json(run("pull", "three@1.0.0", "--hub", hub, "--policy", policy, "--json"))["publisher"] == "team"
    assert "is not signed" in failed(run("pull", "three", "--hub", hub, "--policy", policy))
    policy.write_text("require_signature: true\ntrusted_key: {team: team.pub}\n")
    assert "did you mean 'trusted_keys'" in failed(run("pull", "three@1.0.0", "--hub", hub, "--policy", policy))


def test_the_users_own_policy_holds_for_every_verb_that_uses_a_package(
    run: Any, hub: Path, packages: dict[str, Path], keys: Any, tmp_path: Path, monkeypatch: Any, tiny_tasks: Any
) -> None:
    settings = tmp_path / "settings" / "sparsehub" / "hub.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"policy: {{require_signature: true, trusted_keys: {{team: {keys[1]}}}}}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    verbs = (
        ["pull", "three", "--hub", hub],
        ["inspect", packages["three"]],
        ["verify", packages["three"]],
        ["compare", packages["three"], packages["five"]],
        ["copy", "three", "--from", hub, "--to", tmp_path / "other"],
        ["materialize", "three", "--hub", hub, "--backbone", tiny_tasks.folder, "--out", tmp_path / "full"],
        ["materialize", packages["three"], "--backbone", tiny_tasks.folder, "--out", tmp_path / "full"],
    )
    for arguments in verbs:
        assert "is not signed" in failed(run(*arguments)), arguments
    settings.write_text("policy: [")
    for arguments in verbs:
        assert "cannot be read" in failed(run(*arguments)), arguments
    assert run("ls", hub).code == 0


def test_copy(run: Any, hub: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run("tag", "three@1.0.0", "stable", "--hub", hub)
    copied = as_json(run("copy", "three@1.0.0", "five", "--from", hub, "--to", other, "--json"))
    assert [(line["name"], line["version"]) for line in copied] == [("three", "1.0.0"), ("five", "1.0.0")]
    assert run("copy", "three", "--from", hub, "--to", other, "--all").code == 0
    entries = {e["version"]: e for e in as_json(run("ls", other, "three", "--json"))}
    assert {v: e["channels"] for v, e in entries.items()} == {"1.0.0": ["stable"], "1.1.0": [], "2.0.0": ["latest"]}
    before = {e["version"]: e["digest"] for e in as_json(run("ls", hub, "three", "--json"))}
    assert {v: e["digest"] for v, e in entries.items()} == before


def test_gc_shows_first_and_removes_on_demand(run: Any, hub: Path) -> None:
    assert "0 objects" in run("gc", hub).out
    stray = hub / "blobs/sha256" / ("0" * 64)
    stray.write_bytes(b"left behind")
    os.utime(stray, (1000, 1000))
    found = as_json(run("gc", hub, "--json"))
    assert (found["deleted"], found["bytes"], len(found["objects"])) == (False, 11, 1) and stray.exists()
    assert "1 objects, 11 B removed" in run("gc", hub, "--delete").out
    assert not stray.exists()


def test_gc_of_the_cache(run: Any, hub: Path) -> None:
    run("pull", "three", "five", "--hub", hub)
    before = as_json(run("gc", "--json"))
    assert before["bytes"] > 0 and before["removed"] == 0
    assert "over the limit" in run("gc", "--keep-bytes", 0).out
    after = as_json(run("gc", "--keep-bytes", 0, "--delete", "--json"))
    assert after["bytes"] == 0 and after["removed"] == before["bytes"]


def test_compare(run: Any, hub: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    from sparsehub.delta import overlap
    from sparsehub.package import read_package

    found = as_json(run("compare", packages["three"], packages["five"], "--json"))
    expected = overlap(read_package(packages["three"]).delta, read_package(packages["five"]).delta)
    (pair,) = found["pairs"]
    assert (pair["shared"], pair["jaccard"]) == (expected.shared, expected.jaccard)
    assert pair["sign_agreement"] == expected.sign_agreement
    shown = run("compare", "three", "five", "three@1.0.0", "--hub", hub, "--png", tmp_path / "overlap.png")
    assert "Jaccard" in shown.out and "three@1.0.0" in shown.out and "100%" in shown.out
    assert (tmp_path / "overlap.png").read_bytes().startswith(b"\x89PNG")


def test_tasks_that_share_name_and_version_are_told_apart_by_their_digests(packages: dict[str, Path]) -> None:
    from sparsehub.package import read_package
    from sparsehub.package.comparison import compare_packages

    one = read_package(packages["three"])
    assert compare_packages([one, read_package(packages["five"])]).names == ("three", "five")
    other = replace(one, digest="sha256:" + "0" * 64)
    assert compare_packages([one, other]).names == (f"three@1.0.0 {one.digest[:19]}", "three@1.0.0 sha256:000000000000")


def test_compare_refuses_other_backbones(run: Any, packages: dict[str, Path], tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "package"
    assert "not on one backbone" in failed(run("compare", packages["three"], golden))


class Page(HTMLParser):
    """What a page holds, and what it would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.foreign, self.open = "", [], []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        names = dict(attributes)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag in ("script", "iframe", "link", "object") or any(name.startswith("on") for name in names):
            self.foreign.append(tag)
        self.foreign += [v for name, v in names.items() if name in ("src", "href") and not str(v).startswith("data:")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_inspect_writes_a_page_that_loads_nothing(
    run: Any, packages: dict[str, Path], hub: Path, tmp_path: Path
) -> None:
    assert run("inspect", packages["three"], "--html", tmp_path / "page.html").code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.foreign == [] and page.open == []
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "").replace("text-align", "")
    manifest = read_manifest(packages["three"])
    for part in (
        manifest.digest,
        "three 1.0.0",
        "label0, label1, label2",
        "encoder.layer 0",
        "0.5000",
        "open_hub(",
        "no other",
    ):
        assert part in page.text
    found = as_json(run("inspect", "three", "--hub", hub, "--html", tmp_path / "again.html", "--json"))
    assert found["page"] == str(tmp_path / "again.html")


def test_a_page_of_a_hostile_package_runs_nothing(packages: dict[str, Path]) -> None:
    import dataclasses

    from sparsehub.deltafile import DELTA_FILE
    from sparsehub.package.delta_stats import histogram
    from sparsehub.package.html_report import render_report
    from sparsehub.package.summary import summarize
    from sparsehub.package.validation import validate_stored_delta

    folder, evil = packages["three"], "<script>alert(1)</script>\"' onload=x"
    manifest = read_manifest(folder)
    stored = validate_stored_delta((folder / DELTA_FILE).read_bytes(), manifest)
    parameters = {f"{name}{evil}": touched for name, touched in manifest.delta.parameters.items()}
    spoilt = dataclasses.replace(
        manifest,
        task=dataclasses.replace(manifest.task, labels=(evil, "b"), text_fields=(evil,)),
        backbone=dataclasses.replace(manifest.backbone, id=f"$(touch /); {evil}", architecture=evil, revision=evil),
        delta=dataclasses.replace(manifest.delta, parameters=parameters, method=evil),
        license=evil,
        training={evil: evil, "data": {"test": {"source": evil}}},
        metrics={evil: {evil: 0.5}, "test": {"accuracy": 1.0}},
        lineage=dataclasses.replace(manifest.lineage, checkpoint=evil, checkpoint_digest="x"),
    )
    page = Page()
    page.feed(render_report(summarize(spoilt), histogram(stored)))
    assert page.foreign == [] and page.open == [] and "alert(1)" in page.text
    served = next(line for line in page.text.splitlines() if "sparsehub serve" in line)
    words = shlex.split(served[served.index("sparsehub serve") :])
    assert words[3] == spoilt.backbone.id and words[4] == "--hub", "what people paste into a shell is quoted"
