"""Who visits the console, how a browser signs in, and a card that means harm."""

from __future__ import annotations

from typing import Any

from serving.auth import ADMIN, PREDICT, WATCH, Key, KeyRing
from serving.auth.keys import new_secret
from serving.console.client import AnswerError
from sparsehub.files import sha256_bytes

SECRETS = {name: new_secret() for name in ("boss", "team", "watcher")}
ROLES = {"boss": (ADMIN, ("*",)), "team": (PREDICT, ("three", "pair")), "watcher": (WATCH, ("*",))}
RING = KeyRing(tuple(Key(name, sha256_bytes(secret.encode()), *ROLES[name]) for name, secret in SECRETS.items()))
CARD = """---
license: x
---
# Three <script>window.hacked = 1</script>

![pixel](http://203.0.113.9/p.png) ![own](density.png) [bad](javascript:window.hacked=2) [good](https://example.org/)
[beside](/v1/tasks)

<img src=x onerror="window.hacked = 3">

| a |
|---|
| <b>1</b> |

```sh
sparsehub serve --backbone sentence-transformers/all-MiniLM-L6-v2 --hub HUB --task three@1.0.0 --port 3000
```

| split | data | accuracy | macro_f1 | matthews |
|---|---|---|---|---|
| validation (majority) | validation.jsonl, 72 rows | 0.0833 | 0.0128 | 0.0000 |
"""


def signed_in(server: Any, name: str) -> dict[str, str]:
    """The header that a browser sends which has signed in."""
    answer = server.client.post("/console/sign-in", data={"key": SECRETS[name]}, follow_redirects=False)
    server.client.cookies.clear()
    assert answer.status_code == 303, answer.text
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/console")), cookie
    assert "expires" not in cookie.lower() and "max-age" not in cookie.lower()
    return {"cookie": cookie.partition(";")[0]}


class Asker:
    """The console's client, without a browser before it."""

    def __init__(self, client: Any):
        self.client = client
        self.posted: list[str] = []

    async def get(self, path: str) -> Any:
        return self._answer(self.client.get(path))

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        self.posted.append(path)
        return self._answer(self.client.post(path, json=body))

    def _answer(self, response: Any) -> Any:
        if response.status_code >= 400:
            raise AnswerError(response.status_code, response.json()["error"]["message"])
        return response.json()
