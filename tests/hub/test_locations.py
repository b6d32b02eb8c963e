from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError

from sparsehub.errors import HubError, NotFoundError, UnreachableError, UsageError
from sparsehub.hub import PackageHub, memory_hub, open_hub
from sparsehub.hub.blob_store import BlobStore
from sparsehub.hub.blob_store_backend import BlobStoreBackend
from sparsehub.hub.user_settings import read_policy, read_settings
from tests.support.hub_servers.azure import AZURE


@pytest.mark.parametrize(
    "location", ["https://example.org/hub", "ftp://host/x", "memory://x", "hf://org/task", "hf://", "s3://"]
)
def test_places_where_no_package_can_live_are_refused(location) -> None:
    with pytest.raises(UsageError, match="expected:"):
        open_hub(location)


@pytest.mark.parametrize(
    "location", ["s3://key:secret@bucket/hub", "hf://user:hf_token@org", "s3://bucket?sig=1", "gs://bucket#x"]
)
def test_a_location_never_carries_credentials(location) -> None:
    with pytest.raises(UsageError, match="never from the location"):
        open_hub(location)


def test_every_cloud_is_opened_without_asking_it(monkeypatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for location in ("s3://bucket/hub", "gs://bucket", "az://container/a/b", "hf://some-org"):
        assert open_hub(location).where == location


def test_a_cloud_that_lacks_its_settings_says_which(monkeypatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UsageError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_hub("az://container/prefix")


@pytest.mark.parametrize("location", ["hub", "s3://bucket/hub"])
def test_only_the_hugging_face_hub_has_private_tasks(location) -> None:
    with pytest.raises(UsageError, match="private"):
        open_hub(location, private=True)


@pytest.mark.parametrize("location", ["", "  ", "file://host/hub", "file://", "file:///hub?x=1"])
def test_locations_that_are_no_folder_are_refused(location) -> None:
    with pytest.raises(UsageError):
        open_hub(location)


def test_a_file_is_no_hub(tmp_path) -> None:
    (tmp_path / "hub").write_text("")
    with pytest.raises(UsageError, match="a hub is a folder"):
        open_hub(tmp_path / "hub")


def test_the_first_publish_makes_the_folder_and_reading_does_not(tmp_path, make_package) -> None:
    root = tmp_path / "deep" / "hub"
    hub = open_hub(root)
    for read in (hub.list, lambda: hub.resolve("trec"), lambda: hub.resolve("trec@1.0.0")):
        with pytest.raises(NotFoundError, match="no hub at"):
            read()
    assert not root.parent.exists()
    published = hub.publish(make_package())
    assert hub.resolve("trec") == published


def test_a_path_a_text_and_a_url_are_the_same_hub(tmp_path, make_package, monkeypatch) -> None:
    root = tmp_path / "my hub"
    published = open_hub(root).publish(make_package())
    monkeypatch.chdir(tmp_path)
    for location in (str(root), root.as_uri(), "my hub", Path("my hub")):
        assert open_hub(location).resolve("trec") == published


def test_an_empty_hub_says_so(tmp_path) -> None:
    assert memory_hub().list() == []
    with pytest.raises(NotFoundError, match="without any task"):
        memory_hub().resolve("trec")


def test_importing_the_hub_imports_neither_torch_nor_obstore() -> None:
    code = "import sys, sparsehub.hub; sys.exit(bool({'torch', 'obstore'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_settings_that_the_docs_show_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    folder = tmp_path / "sparsehub"
    folder.mkdir()
    (folder / "hub.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    for name in ("team.pub", "root.pem"):
        (folder / name).write_text("anything")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert read_settings().cache_bytes == 20_000_000_000
    policy = read_policy()
    assert policy.require_signature and policy.publishers == ("team",) and list(policy.trusted_keys) == ["team"]
    assert policy.trusted_identities[0].identity == "release@example.org"


@pytest.mark.parametrize(
    ("kind", "location"),
    [("s3", "s3://no-such-bucket/team"), pytest.param(*AZURE.values, "az://none", marks=AZURE.marks)],
)
def test_a_bucket_that_is_not_there_is_told_as_such(make_home, make_package, kind, location) -> None:
    make_home(kind)
    hub = open_hub(location)
    for use in (hub.list, lambda: hub.resolve("trec"), lambda: hub.publish(make_package())):
        with pytest.raises(HubError, match=f"there is no bucket for {location}"):
            use()


@pytest.mark.parametrize("server", ["169.254.169.254/latest/api/token", "metadata.google.internal/token"])
def test_where_the_last_place_for_credentials_fails_they_are_asked_for(server: str) -> None:
    """obstore asks the machine's cloud at last, and tells of that alone."""

    def store() -> Any:
        raise GenericError(f"Generic S3 error: Error performing PUT http://{server} in 1ms - 403 Forbidden")

    with pytest.raises(HubError, match=r"no credentials for s3://bucket.*environment variables") as caught:
        PackageHub(BlobStoreBackend(BlobStore(store, "s3://bucket"))).list()
    assert not isinstance(caught.value, UnreachableError), "another try would not help"
