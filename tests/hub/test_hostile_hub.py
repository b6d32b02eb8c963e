"""What somebody who can write to a hub, or an old client, may try: no answer changes by it without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sparsehub.errors import IntegrityError, SparsehubError, TrustError
from sparsehub.hub import open_hub
from sparsehub.hub.package_loader import load_package, pull
from sparsehub.package.policy import Policy
from sparsehub.package.signing import KeySigner, sign_package


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))


def test_a_writer_who_looked_before_moves_no_channel_back(backend, make_package) -> None:
    hub = backend.hub
    first, second = (hub.publish(make_package(version=version)) for version in ("1.0.0", "1.1.0"))
    hub.tag("trec", "stable", first.digest)
    old, token = hub.backend.read_channel("trec", "stable")
    hub.tag("trec", "stable", second.digest)
    assert not hub.backend.write_channel("trec", "stable", old, token)
    assert not hub.backend.write_channel("trec", "stable", old, None), "nor one that saw none"
    assert hub.resolve("trec@stable").digest == second.digest


def test_a_channel_of_a_newer_writer_is_not_written_over_by_an_older_one(backend, make_package) -> None:
    hub = backend.hub
    first, second = (hub.publish(make_package(version=version)) for version in ("1.0.0", "1.1.0"))
    hub.tag("trec", "stable", first.digest)
    data, token = hub.backend.read_channel("trec", "stable")
    newer = json.dumps({**json.loads(data), "of_a_later_version": True}).encode()
    assert hub.backend.write_channel("trec", "stable", newer, token)
    with pytest.raises(IntegrityError, match="unknown key 'of_a_later_version'"):
        hub.tag("trec", "stable", second.digest)
    assert hub.backend.read_channel("trec", "stable")[0] == newer


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


@pytest.mark.parametrize("policy", ["require", "publishers"])
def test_a_signature_that_is_taken_away_is_missed(tmp_path: Path, make_package, team, policy: str) -> None:
    hub, folder = open_hub(tmp_path / "hub"), make_package()
    sign_package(folder, KeySigner(team[0]))
    published = hub.publish(folder)
    names = {"team": team[1]}
    demanding = Policy(True, names) if policy == "require" else Policy(False, names, publishers=("team",))
    stored = tmp_path / "hub" / "signatures" / "sha256" / published.digest[7:]
    signature = stored.read_bytes()
    for stripped in (None, b"", b"{}", signature[:-20]):
        stored.unlink(missing_ok=True)
        if stripped is not None:
            stored.write_bytes(stripped)
        for use in (load_package, pull):
            with pytest.raises(TrustError):
                use("trec@1.0.0", hub, policy=demanding)
    stored.unlink()
    stored.write_bytes(signature)
    (tmp_path / "cache").rename(tmp_path / "old-cache")
    assert load_package("trec@1.0.0", hub, policy=demanding).digest == published.digest
    stored.unlink()
    assert load_package("trec@1.0.0", hub, policy=demanding).digest == published.digest, "the copy here has its own"
    only_trusting = Policy(False, names)
    (tmp_path / "cache").rename(tmp_path / "older-cache")
    assert load_package("trec@1.0.0", hub, policy=only_trusting).digest == published.digest, "docs/security.md says so"


def test_another_packages_bytes_under_a_digest_are_refused(backend, make_package) -> None:
    hub = backend.hub
    if not hasattr(backend, "overwrite") or hub.where.startswith("hf://"):
        pytest.skip("the Hugging Face Hub keeps commits")
    first, second = (hub.publish(make_package(version=version, head=300)) for version in ("1.0.0", "1.1.0"))
    paths = {path.rsplit("/", 1)[-1]: path for path in backend.paths()}
    evil, good = (paths[found.digest.removeprefix("sha256:")] for found in (first, second))
    backend.overwrite(good, backend.read(evil))
    with pytest.raises(SparsehubError):
        pull("trec@1.1.0", hub)
    assert pull("trec@1.0.0", hub).manifest.version == "1.0.0"
