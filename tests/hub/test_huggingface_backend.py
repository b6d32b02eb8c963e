"""What only the Hugging Face Hub has: repositories, commits, tokens, gates, and a network in between."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import HfApi
from starlette.responses import Response

from sparsehub.errors import HubError, IntegrityError, NotFoundError, UnreachableError, UsageError
from sparsehub.hub import PackageHub, open_hub, retry
from sparsehub.hub.huggingface_backend import HuggingFaceBackend, digest_tag
from sparsehub.package import read_manifest
from tests.support.hub_servers.huggingface import State


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))  # it waits by itself


def visitor(backend, token: str | bool = False) -> PackageHub:
    """The same hub, seen by somebody else."""
    return PackageHub(HuggingFaceBackend(backend.owner, api=HfApi(endpoint=backend.address, token=token)))


def repo(backend, name: str = "trec"):
    return backend.repos[f"{backend.owner}/{name}"]


def test_a_publish_is_one_commit_and_then_its_tags(hf_home, make_package) -> None:
    before = len(hf_home.state.requests)
    published = hf_home.hub.publish(make_package())
    found = repo(hf_home)
    commits = [commit for commit in found.commits.values() if "sparsehub.json" in commit.files]
    assert len(commits) == 1
    assert found.tags == {digest_tag(published.digest): found.branches["main"], "1.0.0": found.branches["main"]}
    asked = hf_home.state.requests[before:]
    (commit,) = (i for i, line in enumerate(asked) if line.endswith("/commit/main"))
    tags = [i for i, line in enumerate(asked) if "/tag/" in line]
    assert len(tags) == 2 and all(place > commit for place in tags)


def test_main_shows_the_last_package_and_nothing_of_the_one_before(hf_home, make_package, tmp_path) -> None:
    first = make_package()
    (first / "model.sig").write_bytes(b"signed")
    hf_home.hub.publish(first)
    last = make_package(version="1.1.0")
    hf_home.hub.publish(last)
    files = repo(hf_home).commits[repo(hf_home).branches["main"]].files
    assert set(files) == {".gitattributes", *(path.name for path in last.iterdir())}
    hf_home.hub.fetch(hf_home.hub.resolve("trec@1.0.0"), tmp_path / "old")
    assert (tmp_path / "old" / "model.sig").read_bytes() == b"signed"


def test_a_package_is_found_by_its_base_model_its_library_and_its_data(hf_home, tmp_path) -> None:
    import dataclasses

    from sparsehub.package import read_package, write_package

    golden = read_package(Path(__file__).parents[1] / "golden" / "package")
    data = {"validation": {"source": "nyu-mll/glue:sst2:validation", "rows": 10}}
    draft = dataclasses.replace(golden.manifest, training={"data": data})
    write_package(tmp_path / "package", draft, golden.delta, golden.head)
    hf_home.hub.publish(tmp_path / "package")
    api = HfApi(endpoint=hf_home.address, token=False)

    def ids(*filters: str) -> list[str]:
        return [model.id for model in api.list_models(author=hf_home.owner, filter=filters)]

    name = f"{hf_home.owner}/golden"
    assert ids("sparsehub") == [name]
    assert ids("base_model:adapter:example/backbone", "text-classification", "dataset:nyu-mll/glue") == [name]
    assert ids("sparsehub", "base_model:adapter:other/backbone") == []
    files = repo(hf_home, "golden").commits[repo(hf_home, "golden").branches["main"]].files
    (result,) = yaml.safe_load(hf_home.state.blobs[files[".eval_results/sparsehub.yaml"]])
    assert result["dataset"] == {"id": "nyu-mll/glue", "task_id": "sst2"} and result["value"] == 0.875
    hf_home.hub.fetch(hf_home.hub.resolve("golden"), tmp_path / "fetched")
    assert not (tmp_path / "fetched" / ".eval_results").exists(), "it is the Hub's, not the package's"


def test_a_card_by_which_nobody_would_find_it_is_refused(hf_home, make_package) -> None:
    for card in ("# Plain\n", "---\ntitle: x\n---\nlibrary_name: sparsehub\n"):
        with pytest.raises(UsageError, match="nobody would find this package"):
            hf_home.hub.publish(make_package(card=card))
    assert hf_home.everything() == {}


def test_without_a_token_nothing_is_published_and_public_packages_are_read(hf_home, make_package, tmp_path) -> None:
    package = make_package()
    with pytest.raises(HubError, match=r"no permission.*HF_TOKEN"):
        visitor(hf_home).publish(package)
    published = hf_home.hub.publish(package)
    assert visitor(hf_home).fetch(published, tmp_path / "fetched").digest == published.digest
    for write in (
        lambda hub: hub.publish(make_package(version="2.0.0")),
        lambda hub: hub.tag("trec", "1.0", published.digest),
        lambda hub: hub.tag("trec", "stable", published.digest),
    ):
        with pytest.raises(HubError, match="no permission"):
            write(visitor(hf_home))


def test_a_private_task_is_there_for_those_who_may_see_it(hf_home, make_package, tmp_path) -> None:
    owner = HuggingFaceBackend(hf_home.owner, private=True, api=HfApi(endpoint=hf_home.address, token="hf_writer"))
    published = PackageHub(owner).publish(make_package())
    assert repo(hf_home).private
    assert hf_home.hub.fetch(published, tmp_path / "fetched").digest == published.digest
    assert [entry.name for entry in hf_home.hub.list()] == ["trec"]
    assert visitor(hf_home).list() == []
    with pytest.raises(NotFoundError, match="hf auth login"):
        visitor(hf_home).resolve("trec")
    with pytest.raises(NotFoundError):
        visitor(hf_home).fetch(published, tmp_path / "other")


def test_a_gated_task_says_where_to_ask(hf_home, make_package, tmp_path) -> None:
    published = hf_home.hub.publish(make_package())
    repo(hf_home).gated = True
    assert hf_home.hub.fetch(published, tmp_path / "fetched").digest == published.digest
    with pytest.raises(HubError, match=rf"gated.*huggingface\.co/{hf_home.owner}/trec"):
        visitor(hf_home).fetch(published, tmp_path / "other")


def test_the_token_comes_from_the_environment_and_does_not_leave_the_hub(
    hf_home, make_package, tmp_path, monkeypatch
) -> None:
    """Large files come by a redirect to another host; the token must not go there."""
    published = hf_home.hub.publish(make_package(head=5000))
    repo(hf_home).private = True
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hf_home.state.cdn_tokens.clear()
    hf_home.state.cdn_host = hf_home.address.replace("127.0.0.1", "localhost")
    own = PackageHub(HuggingFaceBackend(hf_home.owner, api=HfApi(endpoint=hf_home.address)))
    assert own.fetch(published, tmp_path / "fetched").digest == published.digest
    assert hf_home.state.cdn_tokens and set(hf_home.state.cdn_tokens) == {""}


def test_names_that_the_hugging_face_hub_does_not_take_are_refused(hf_home, make_package) -> None:
    with pytest.raises(UsageError, match="takes no such name"):
        hf_home.hub.publish(make_package(), name="a--b")


def test_a_passing_failure_is_tried_again(hf_home, make_package, tmp_path) -> None:
    failures = dict.fromkeys(("refs", "resolve", "cdn", "tree", "tag", "preupload", "batch"), 2)

    def fault(method: str, path: str) -> Response | None:
        for part, left in failures.items():
            if f"/{part}" in path and left:
                failures[part] = left - 1
                return Response(status_code=503)
        return None

    hf_home.state.fault = fault
    published = hf_home.hub.publish(make_package(head=5000))
    hf_home.hub.fetch(published, tmp_path / "fetched")
    assert failures == dict.fromkeys(failures, 0)


def test_a_commit_whose_answer_was_lost_is_found_and_not_made_twice(hf_home, make_package) -> None:
    lost = []

    def fault(method: str, path: str) -> Response | None:
        if path.endswith("/commit/main") and not lost:
            lost.append(path)
            return Response(status_code=502)
        return None

    hf_home.state.fault = fault
    hf_home.hub.publish(make_package())
    assert lost
    assert sum("sparsehub.json" in commit.files for commit in repo(hf_home).commits.values()) == 1


def test_a_commit_that_fails_each_time_says_why(hf_home, make_package, monkeypatch) -> None:
    monkeypatch.setattr("sparsehub.hub.huggingface_backend.wait_before", lambda attempt: None)
    hf_home.state.fault = lambda method, path: Response(status_code=503) if "/commit/" in path else None
    with pytest.raises(UnreachableError, match="503"):
        hf_home.hub.publish(make_package())
    assert hf_home.hub.backend.versions("trec") == []


def test_a_hub_without_xet_says_what_to_do(hf_home, make_package, monkeypatch) -> None:
    """The client takes Xet for granted where its library is installed, as it is with every fresh one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    with pytest.raises(HubError, match=r"has no Xet storage.*HF_HUB_DISABLE_XET=1"):
        hf_home.hub.publish(make_package(head=5000))


def test_a_hub_that_stays_down_is_told_as_such(hf_home, make_package) -> None:
    hf_home.state.fault = lambda method, path: Response(status_code=503)
    with pytest.raises(UnreachableError, match="failed at"):
        hf_home.hub.resolve("trec")
    hf_home.state.fault = lambda method, path: None
    nobody = PackageHub(HuggingFaceBackend("nobody", api=HfApi(endpoint="http://127.0.0.1:9", token=False)))
    with pytest.raises(UnreachableError):
        nobody.list()


def test_a_server_that_ignores_ranges_is_understood(hf_home, make_package, tmp_path, monkeypatch) -> None:
    published = hf_home.hub.publish(make_package(head=5000))
    monkeypatch.setattr("sparsehub.hub.transfer.PIECE", 1000)
    hf_home.state.ignores_ranges = True
    try:
        assert hf_home.hub.fetch(published, tmp_path / "fetched").digest == published.digest
    finally:
        hf_home.state.ignores_ranges = False


def test_a_lost_file_and_one_of_another_size_are_named(hf_home, make_package, tmp_path) -> None:
    published = hf_home.hub.publish(make_package())
    commit = repo(hf_home).commits[repo(hf_home).branches["main"]]
    good = commit.files.pop("head.safetensors")
    with pytest.raises(IntegrityError, match=r"has lost head\.safetensors"):
        hf_home.hub.fetch(published, tmp_path / "fetched")
    commit.files["head.safetensors"] = hf_home.state.store(hf_home.state.blobs[good] + b"x")
    with pytest.raises(IntegrityError, match="damaged"):
        hf_home.hub.fetch(published, tmp_path / "fetched")


def test_a_tag_that_was_moved_is_found_by_whoever_pinned_its_digest(hf_home, make_package, tmp_path) -> None:
    """Whoever may write to a repository may also move its tags. Pins are what holds then."""
    from sparsehub.hub.lockfile import lock_references

    hf_home.hub.publish(make_package())
    lock = lock_references(["trec@1.0.0"], hf_home.hub, None)
    other = hf_home.hub.publish(make_package(version="2.0.0"))
    repo(hf_home).tags["1.0.0"] = repo(hf_home).tags["2.0.0"]
    with pytest.raises(IntegrityError) as caught:
        lock.resolve("trec", hf_home.hub)
    assert other.digest in str(caught.value) and lock.tasks[0].digest in str(caught.value)
    assert hf_home.hub.fetch(hf_home.hub.resolve(f"trec@{lock.tasks[0].digest}"), tmp_path / "x").version == "1.0.0"


def test_a_digest_tag_on_another_commit_gives_no_other_bytes(hf_home, make_package, tmp_path) -> None:
    first = hf_home.hub.publish(make_package())
    hf_home.hub.publish(make_package(version="2.0.0"))
    repo(hf_home).tags[digest_tag(first.digest)] = repo(hf_home).tags["2.0.0"]
    with pytest.raises(IntegrityError):
        visitor(hf_home).fetch(first, tmp_path / "fetched")


def test_a_foreign_tag_is_listed_and_hides_nothing(hf_home, make_package) -> None:
    hf_home.hub.publish(make_package())
    found = repo(hf_home)
    found.tags["v0-of-somebody"] = next(iter(found.commits))
    entries = {entry.version: entry.error for entry in hf_home.hub.list()}
    assert entries["1.0.0"] is None and "must point at one package" in str(entries["v0-of-somebody"])


def test_a_publisher_who_died_before_his_tag_is_followed_by_the_next(hf_home, make_package, monkeypatch) -> None:
    monkeypatch.setattr("sparsehub.hub.huggingface_backend.PATIENCE", 0.2)
    dead, alive = make_package(card="---\nlibrary_name: sparsehub\n---\nDead.\n"), make_package()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HuggingFaceBackend, "_tag", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            hf_home.hub.publish(dead)
    assert hf_home.hub.list() == []
    published = hf_home.hub.publish(alive)
    assert published.digest == read_manifest(alive).digest
    assert hf_home.hub.resolve("trec@1.0.0") == published


def test_in_a_race_main_shows_the_winner(hf_home, make_package) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from sparsehub.errors import VersionExistsError

    folders = [make_package(card=f"---\nlibrary_name: sparsehub\n---\n{i}\n") for i in range(6)]

    def publish(folder: Path) -> str | None:
        try:
            return visitor(hf_home, "hf_writer").publish(folder).digest
        except VersionExistsError:
            return None

    with ThreadPoolExecutor(6) as pool:
        (winner,) = (digest for digest in pool.map(publish, folders) if digest)
    found = repo(hf_home)
    assert found.branches["main"] == found.tags["1.0.0"] == found.tags[digest_tag(winner)]


def test_channels_lie_on_a_branch_of_their_own(hf_home, make_package) -> None:
    hf_home.hub.publish(make_package())
    found = repo(hf_home)
    files = found.commits[found.branches["sparsehub"]].files
    assert set(files) == {".gitattributes", "channels/latest.json"}
    assert json.loads(hf_home.state.blobs[files["channels/latest.json"]])["target"]["version"] == "1.0.0"


def test_the_location_alone_opens_it(hf_hub: tuple[str, State]) -> None:
    assert open_hub("hf://some-org", private=True).where == "hf://some-org"
