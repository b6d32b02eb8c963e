"""What a cached package costs `pull`: a look where nothing was touched, a hash otherwise. Nobody else is spared."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sparsehub.errors import FormatError, IntegrityError, TrustError
from sparsehub.files import canonical_json
from sparsehub.hub import open_hub
from sparsehub.hub.cache import PackageCache
from sparsehub.hub.package_loader import PulledPackage, load_package, pull, use_package
from sparsehub.hub.validation_cache import SETTLED, record_of
from sparsehub.package import Manifest, validate_package, validation
from sparsehub.package.materialize import materialize
from sparsehub.package.policy import Policy
from sparsehub.package.signing import KeySigner, sign_package


@pytest.fixture
def hub(tmp_path: Path, make_package, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))
    found = open_hub(tmp_path / "hub")
    found.publish(make_package(head=1000))
    return found


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose every byte `pull` hashed, in order."""
    found, honest = list[Path](), validation.validate_digests

    def counted(folder: Path, manifest: Manifest) -> None:
        found.append(folder)
        honest(folder, manifest)

    monkeypatch.setattr(validation, "validate_digests", counted)
    return found


def settle() -> None:
    """Wait until a new write cannot bear the same time as the last one."""
    time.sleep(2 * SETTLED / 1e9)


@pytest.fixture
def pulled(hub, hashed: list[Path]) -> PulledPackage:
    """The package in the cache, and its record beside it."""
    pull("trec@1.0.0", hub)
    settle()
    found = pull("trec@1.0.0", hub)
    assert record_of(found.folder).is_file()
    hashed.clear()
    return found


def flip(file: Path, place: int) -> None:
    """Change one bit and put the file's own times back."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def forge(folder: Path) -> None:
    """A record that swears by the files as they are now."""
    said = json.loads(record_of(folder).read_bytes())
    for name, line in said.items():
        status = (folder / name).stat()
        line[:4] = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    record_of(folder).write_bytes(canonical_json(said))


def test_nothing_is_hashed_where_nothing_was_touched(hub, pulled, hashed) -> None:
    for _ in range(3):
        assert pull("trec@1.0.0", hub).manifest == pulled.manifest
    assert hashed == []


@pytest.mark.parametrize("name", ["delta.safetensors", "head.safetensors", "README.md", "sparsehub.json"])
def test_a_flipped_byte_under_an_old_time_is_found_by_pull(hub, pulled, name: str) -> None:
    good = (pulled.folder / name).read_bytes()
    for place in (0, len(good) // 2, -1):
        flip(pulled.folder / name, place)
        assert pull("trec@1.0.0", hub).manifest == pulled.manifest
        assert (pulled.folder / name).read_bytes() == good
        settle()
        pull("trec@1.0.0", hub)
    assert len(list((PackageCache().root / "damaged").iterdir())) == 3


@pytest.mark.parametrize("name", ["delta.safetensors", "head.safetensors", "README.md"])
def test_a_forged_record_deceives_pull_and_nobody_who_uses_the_package(hub, pulled, hashed, tmp_path, name) -> None:
    good = (pulled.folder / name).read_bytes()

    def spoil() -> None:
        settle()
        pull("trec@1.0.0", hub)
        flip(pulled.folder / name, len(good) // 2)
        forge(pulled.folder)
        hashed.clear()

    spoil()
    assert pull("trec@1.0.0", hub).manifest == pulled.manifest and hashed == []
    assert (pulled.folder / name).read_bytes() != good
    assert load_package("trec@1.0.0", hub).digest == pulled.resolved.digest
    assert (pulled.folder / name).read_bytes() == good, "mended before anything was used"
    spoil()
    assert use_package("trec@1.0.0", hub, lambda folder, _: validate_package(folder)) == pulled.manifest
    assert (pulled.folder / name).read_bytes() == good
    spoil()
    pull("trec@1.0.0", hub, out=tmp_path / "mine")
    assert (tmp_path / "mine" / name).read_bytes() == good
    assert not record_of(tmp_path / "mine").exists()


def test_a_forged_record_and_no_hub_to_mend_it(hub, pulled, tmp_path) -> None:
    """Then the package is refused, wherever its weights would be touched."""
    flip(pulled.folder / "delta.safetensors", -1)
    forge(pulled.folder)
    for blob in (tmp_path / "hub/blobs/sha256").iterdir():
        blob.write_bytes(b"gone bad")
    with pytest.raises(IntegrityError):
        materialize(load_package(str(pulled.folder), None), "no such backbone", tmp_path / "checkpoint")
    with pytest.raises(FormatError):
        load_package("trec@1.0.0", hub)
    assert not PackageCache().holds(pulled.resolved.digest)
    assert not record_of(pulled.folder).exists(), "it goes with its package"


@pytest.mark.parametrize(
    "change",
    [
        lambda good: b"",
        lambda good: good[:-1],
        lambda good: good + b" ",
        lambda good: bytes([good[0] ^ 1]) + good[1:],
        lambda good: good[:-20] + bytes([good[-20] ^ 1]) + good[-19:],
        lambda good: b"\xff" * len(good),
        lambda good: b"[" * len(good),
    ],
)
def test_a_malformed_record_costs_a_hash_and_is_written_anew(hub, pulled, hashed, change) -> None:
    record = record_of(pulled.folder)
    good = record.read_bytes()
    record.write_bytes(change(good))
    assert pull("trec@1.0.0", hub).manifest == pulled.manifest
    assert hashed == [pulled.folder]
    assert record.read_bytes() == good


def test_anything_else_in_the_place_of_a_record_costs_a_hash_only(hub, pulled, hashed) -> None:
    record = record_of(pulled.folder)
    record.unlink()
    os.mkfifo(record)
    pull("trec@1.0.0", hub)
    assert record.is_file()
    record.unlink()
    record.mkdir()
    pull("trec@1.0.0", hub)
    pull("trec@1.0.0", hub)
    assert len(hashed) == 3


def test_a_file_that_was_written_a_moment_ago_is_not_recorded(hub, pulled, hashed) -> None:
    """A second write within one tick of the clock would bear the same time."""
    card = pulled.folder / "README.md"
    card.write_bytes(card.read_bytes())
    record_of(pulled.folder).unlink()
    pull("trec@1.0.0", hub)
    assert len(hashed) == 1 and not record_of(pulled.folder).exists()
    settle()
    pull("trec@1.0.0", hub)
    assert len(hashed) == 2 and record_of(pulled.folder).exists()


def test_a_record_goes_with_its_package_and_what_a_killed_process_left_goes_too(hub, pulled) -> None:
    left = record_of(pulled.folder).with_name(".sparsehub-tmp-abc")
    left.write_bytes(b"half")
    assert PackageCache().shrink() == []
    os.utime(left, (1000, 1000))
    assert [kept.path for kept in PackageCache().shrink()] == [left]
    assert record_of(pulled.folder).is_file() and not left.exists()
    PackageCache().shrink(0)
    assert list(record_of(pulled.folder).parent.iterdir()) == []


@pytest.fixture
def team(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    pytest.importorskip("model_signing")
    key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    private, public = tmp_path / "team.pem", tmp_path / "team.pub"
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_damaged_copy_of_a_signed_package_is_mended(hub, make_package, team) -> None:
    """Where the policy comes first, flipped bytes look like a signature that does not hold."""
    folder, policy = make_package(version="2.0.0", head=1000), Policy(True, {"team": team[1]})
    sign_package(folder, KeySigner(team[0]))
    hub.publish(folder)
    pulled = pull("trec@2.0.0", hub, policy=policy)
    good = (pulled.folder / "head.safetensors").read_bytes()
    for use in (load_package, pull):
        settle()
        pull("trec@2.0.0", hub)
        flip(pulled.folder / "head.safetensors", -1)
        forge(pulled.folder)
        use("trec@2.0.0", hub, policy=policy)
        assert (pulled.folder / "head.safetensors").read_bytes() == good
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    team[1].write_bytes(other.public_bytes(*form))
    with pytest.raises(TrustError, match="signed by nobody"):
        pull("trec@2.0.0", hub, policy=policy)
    assert PackageCache().holds(pulled.resolved.digest), "it is whole, and signed by another"
