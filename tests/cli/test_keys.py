"""sparsehub keys: a key is shown once, and its file holds hashes only."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from serving.auth import Authenticator, parse_keys
from sparsehub.files import sha256_bytes


def test_a_key_is_made_listed_and_removed(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = run("keys", "add", file, "team-a", "--task", "topic", "--task", "support-*", "--requests-per-second", "5")
    secret = made.out.strip()
    assert made.code == 0 and secret.startswith("sk-") and "shown this once" in made.err
    assert run("keys", "add", file, "boss", "--role", "admin", "--json").code == 0
    content = file.read_text()
    assert secret not in content and sha256_bytes(secret.encode()) in content
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    caller = Authenticator(parse_keys(file.read_bytes())).identify(f"Bearer {secret}", "10.0.0.1", None)
    assert caller.name == "team-a" and caller.may_ask("support-eu") and not caller.may_ask("trec")
    listed = run("keys", "ls", file).out
    assert "support-*" in listed and "boss" in listed and "sha256" not in listed
    assert run("keys", "remove", file, "team-a").code == 0
    assert [key["name"] for key in json.loads(run("keys", "ls", file, "--json").out)["keys"]] == ["boss"]


def test_what_cannot_be_a_key_changes_nothing(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    assert "no key file" in run("keys", "ls", file).err
    run("keys", "add", file, "a")
    before = file.read_bytes()
    for arguments in (("add", file, "a"), ("add", file, "b", "--role", "root"), ("remove", file, "nobody")):
        assert run("keys", *arguments).code == 2
    assert run("keys", "add", file, "c", "--tokens-per-second", "-1").code == 2
    assert file.read_bytes() == before
