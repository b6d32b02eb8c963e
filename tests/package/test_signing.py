"""Signatures and policies, with the real library: yes only where everything holds."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsehub.errors import FormatError, TrustError, UsageError
from sparsehub.package import read_manifest
from sparsehub.package.policy import Identity, Policy
from sparsehub.package.signing import CertificateSigner, KeySigner, SigstoreSigner, sign_package

pytest.importorskip("model_signing", reason="signatures need model-signing (pip install 'sparsehub[sign]')")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Keys:
    """A key pair in files, and the certificate that a root gave it."""

    private: Path
    public: Path
    certificate: Path
    root: Path


def make_keys(folder: Path, who: str, password: bytes | None = None) -> Keys:
    folder.mkdir(parents=True, exist_ok=True)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"root of {who}")])
    root = _certificate(root_name, root_name, root_key, root_key, [(x509.BasicConstraints(True, None), True)])
    leaf = _certificate(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)]),
        root_name,
        key,
        root_key,
        [
            (x509.BasicConstraints(False, None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
            (x509.KeyUsage(True, *[False] * 8), True),
            (x509.SubjectAlternativeName([x509.RFC822Name(f"{who}@example.org")]), False),
        ],
    )
    locked: Any = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    contents = {
        "private": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked),
        "public": key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
        "certificate": leaf.public_bytes(pem),
        "root": root.public_bytes(pem),
    }
    for name, data in contents.items():
        (folder / f"{name}.pem").write_bytes(data)
    return Keys(**{name: folder / f"{name}.pem" for name in contents})


def _certificate(subject: Any, issuer: Any, key: Any, issuer_key: Any, extensions: list[Any]) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=3650))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "alice", "alice")


@pytest.fixture(scope="module")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "mallory", "mallory")


@pytest.fixture
def signed(folder: Path, alice: Keys) -> Path:
    sign_package(folder, KeySigner(alice.private))
    return folder


def check(policy: Policy, folder: Path) -> str | None:
    return policy.check(folder, read_manifest(folder))


def test_a_signature_by_a_trusted_key_holds_wherever_the_package_lies(signed: Path, alice: Keys, tmp_path) -> None:
    policy = Policy(True, {"team-a": alice.public})
    assert check(policy, signed) == "team-a"
    assert check(policy, shutil.copytree(signed, tmp_path / "another-name")) == "team-a"


def test_a_signature_by_a_certificate_names_its_subject(folder: Path, alice: Keys) -> None:
    sign_package(folder, CertificateSigner(alice.private, alice.certificate))
    assert check(Policy(True, trusted_certificates=(alice.root,)), folder) == "alice@example.org"


def test_an_encrypted_key_signs_with_its_password(folder: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "bob", "bob", b"secret")
    sign_package(folder, KeySigner(keys.private, "secret"))
    assert check(Policy(True, {"bob": keys.public}), folder) == "bob"
    for password in (None, "wrong"):
        with pytest.raises(UsageError, match="cannot be signed"):
            sign_package(folder, KeySigner(keys.private, password))


def test_an_unsigned_package_is_refused_where_signatures_are_demanded(folder: Path, alice: Keys) -> None:
    assert check(Policy(), folder) is None
    assert check(Policy(trusted_keys={"a": alice.public}), folder) is None
    for policy in (Policy(True, {"a": alice.public}), Policy(trusted_keys={"a": alice.public}, publishers=("a",))):
        with pytest.raises(TrustError, match=r"golden@1\.0\.0 is not signed"):
            check(policy, folder)


def test_somebody_elses_signature_is_refused_even_where_none_is_demanded(folder: Path, alice, mallory) -> None:
    sign_package(folder, KeySigner(mallory.private))
    for required in (True, False):
        with pytest.raises(TrustError, match="signed by nobody whom the policy trusts"):
            check(Policy(required, {"a": alice.public}, (alice.root,)), folder)
    assert check(Policy(), folder) is None, "whoever trusts nobody by name can say nothing about it"


def test_a_certificate_of_another_root_is_refused(folder: Path, alice: Keys, mallory: Keys) -> None:
    sign_package(folder, CertificateSigner(mallory.private, mallory.certificate))
    with pytest.raises(TrustError, match="nobody whom the policy trusts"):
        check(Policy(True, trusted_certificates=(alice.root,)), folder)


def test_only_allowed_publishers_may_publish(signed: Path, alice: Keys, mallory: Keys) -> None:
    keys = {"team-a": alice.public, "team-b": mallory.public}
    assert check(Policy(True, keys, publishers=("team-a", "x")), signed) == "team-a"
    with pytest.raises(TrustError, match="team-a may not publish here; found: golden; expected: one of team-b"):
        check(Policy(True, keys, publishers=("team-b",)), signed)


@pytest.mark.parametrize("name", ["delta.safetensors", "head.safetensors", "README.md", "density.png"])
def test_a_changed_file_breaks_the_signature(signed: Path, alice: Keys, name: str) -> None:
    data = bytearray((signed / name).read_bytes())
    data[-1] ^= 1
    (signed / name).write_bytes(data)
    with pytest.raises(TrustError):
        check(Policy(True, {"a": alice.public}), signed)


def test_a_signature_of_another_package_is_refused(signed: Path, alice: Keys, tmp_path: Path) -> None:
    from sparsehub.package import read_package
    from tests.support.packages import write_bare_package

    package = read_package(signed)
    other = tmp_path / "other"
    write_bare_package(other, package.manifest, package.delta, package.head, "# Another card\n", {})
    shutil.copy(signed / "model.sig", other)
    with pytest.raises(TrustError, match=r"model\.sig is of another package; found: README\.md, density\.png, sparse"):
        check(Policy(True, {"a": alice.public}), other)


def test_a_signature_that_leaves_a_file_out_is_refused(folder: Path, alice: Keys) -> None:
    """The library itself would accept it: its list of ignored files is part of what is signed."""
    from model_signing import hashing, signing, verifying

    without = hashing.Config().use_file_serialization().set_ignored_paths(paths=["delta.safetensors", "model.sig"])
    config = signing.Config().use_elliptic_key_signer(private_key=alice.private).set_hashing_config(without)
    config.sign(folder, folder.parent / "model.sig")
    shutil.copy(folder.parent / "model.sig", folder)
    verifying.Config().use_elliptic_key_verifier(public_key=alice.public).verify(folder, folder / "model.sig")
    with pytest.raises(TrustError, match=r"is of another package; found: delta\.safetensors"):
        check(Policy(True, {"a": alice.public}), folder)


def spoil(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def spoilt(data: bytes) -> bytes:
        table = json.loads(data)
        change(table)
        return json.dumps(table).encode()

    return spoilt


def repack(table: dict[str, Any]) -> None:
    """Another payload under the old signature."""
    payload = json.loads(base64.b64decode(table["dsseEnvelope"]["payload"]))
    payload["subject"][0]["name"] = "other"
    table["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"{}",
        lambda data: b"[]",
        lambda data: data[:-1],
        lambda data: b"\xff" + data,
        lambda data: b"[" * 100_000,
        lambda data: data + b" " * (1 << 20),
        spoil(lambda table: table.pop("dsseEnvelope")),
        spoil(lambda table: table["dsseEnvelope"].update(payload="!")),
        spoil(lambda table: table["dsseEnvelope"].update(payload="")),
        spoil(lambda table: table["dsseEnvelope"].update(signatures=[])),
        spoil(lambda table: table["dsseEnvelope"]["signatures"][0].update(sig="AAAA")),
        spoil(lambda table: table.pop("verificationMaterial")),
        spoil(lambda table: table["verificationMaterial"]["publicKey"].update(hint="0" * 64)),
        spoil(repack),
    ],
)
def test_a_malformed_or_forged_signature_is_refused_and_never_crashes(signed: Path, alice: Keys, change) -> None:
    path = signed / "model.sig"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises((TrustError, FormatError)):
        check(Policy(True, {"a": alice.public}, (alice.root,)), signed)


def test_every_flipped_byte_of_a_signature_is_refused_or_changes_nothing(signed: Path, alice: Keys) -> None:
    path, policy, refused = signed / "model.sig", Policy(True, {"a": alice.public}), 0
    sound = path.read_bytes()
    for position in range(0, len(sound), 29):
        spoilt = bytearray(sound)
        spoilt[position] ^= 1
        path.write_bytes(spoilt)
        try:
            assert check(policy, signed) == "a"  # a byte that the standard lets be anything, such as a type's name
        except TrustError:
            refused += 1
    assert refused > len(sound) // 29 // 2


def test_a_signature_that_is_a_link_is_not_followed(signed: Path, alice: Keys) -> None:
    (signed / "model.sig").rename(signed.parent / "model.sig")
    (signed / "model.sig").symlink_to(signed.parent / "model.sig")
    with pytest.raises(TrustError, match="no plain file"):
        check(Policy(True, {"a": alice.public}), signed)


def test_policies_that_could_never_hold_are_refused(tmp_path: Path, alice: Keys) -> None:
    with pytest.raises(UsageError, match="trusts nobody"):
        Policy(require_signature=True)
    with pytest.raises(UsageError, match="trusts nobody"):
        Policy(publishers=("team-a",))
    with pytest.raises(UsageError, match="not there"):
        Policy(True, {"a": tmp_path / "nowhere.pem"})


def test_a_trusted_file_that_is_no_key_trusts_nobody(signed: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("not a key")
    with pytest.raises(TrustError, match="nobody whom the policy trusts"):
        check(Policy(True, {"a": tmp_path / "key.pem"}, (tmp_path / "key.pem",)), signed)


def test_sigstore_without_its_network_is_a_no(folder: Path, signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up proxy stands for a machine without network."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(TrustError, match=r"nobody whom the policy trusts; found: ci@.*sigstore cannot be reached"):
        check(Policy(True, trusted_identities=(Identity("ci@example.org", "https://accounts.example.org"),)), signed)
    with pytest.raises(UsageError, match="sigstore needs the network"):
        sign_package(folder, SigstoreSigner("not-a-token"))


def test_an_unsound_package_is_not_signed(folder: Path, alice: Keys) -> None:
    (folder / "README.md").write_text("edited")
    with pytest.raises(FormatError):
        sign_package(folder, KeySigner(alice.private))
    assert not (folder / "model.sig").exists()


@pytest.mark.parametrize("content", ["", "not a key"])
def test_a_key_that_is_none_is_told(folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "key.pem").write_text(content)
    with pytest.raises(UsageError, match=r"cannot be signed.*PEM"):
        sign_package(folder, KeySigner(tmp_path / "key.pem"))
    with pytest.raises(UsageError, match="cannot be signed"):
        sign_package(folder, KeySigner(tmp_path / "nowhere.pem"))
    assert not (folder / "model.sig").exists()
