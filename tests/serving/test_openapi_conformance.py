"""The endpoint held against its own description, by schemathesis."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.auth import ADMIN, Authenticator, Key, KeyRing
from serving.auth.keys import new_secret
from sparsehub.files import sha256_bytes
from sparsehub.hub import open_hub
from tests.support import SOAK

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ALIASES = "^/(classify|score|rerank|v2/rerank)$"  # of routes that are tried already
pytestmark = [pytest.mark.slow, pytest.mark.soak]
# What a guess would never hit, so that some requests get past the first look.
KNOWN = """
[parameters]
"path.task" = ["three", "rating", "nobody", "three,rating,nobody", "t*"]
"path.version" = ["1.0.0", "2"]
"path.model" = ["three@1.0.0", "nobody"]
"body.model" = ["three", "rating", "backbone", "nobody"]
"body.task" = ["seven", "nobody"]
"""


def test_it_does_what_its_description_says(new_server: Callable[..., Any], suite: Any, tmp_path: Path) -> None:
    """With an admin's key, so that every route is reached. In the suite a few requests a route, in a soak many."""
    secret, hub, catalog = new_secret(), tmp_path / "hub", tmp_path / "catalog.json"
    entries = {}
    for name in ("three", "seven", "rating"):
        found = open_hub(hub).publish(suite[name])
        entries[name] = {"stable": {"version": found.version, "digest": found.digest}}
    catalog.write_text(json.dumps({"revision": 1, "tasks": entries}))
    (tmp_path / "schemathesis.toml").write_text(KNOWN)
    ring = KeyRing((Key("boss", sha256_bytes(secret.encode()), ADMIN),))
    amount = (
        ["--phases", "coverage,fuzzing", "--max-examples", "200"]
        if SOAK
        else ["--phases", "fuzzing", "--max-examples", "8"]
    )
    with new_server(start=True, access=Authenticator(ring), catalog=str(catalog), hub=str(hub)) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json"]
        command += ["--checks", CHECKS, "--exclude-path-regex", ALIASES, "--seed", "1", "--no-color", *amount]
        command += ["--header", f"Authorization: Bearer {secret}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    selected, tested = (re.search(rf"{word}: (\d+)", done.stdout) for word in ("Selected", "Tested"))
    assert selected and tested and selected[1] == tested[1] and int(tested[1]) > 20
