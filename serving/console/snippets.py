"""The page's own requests as lines to copy: for a shell, and for Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from serving.console.task_forms import SentRequest


def curl_lines(url: str, sent: Sequence[SentRequest], keyed: bool) -> str:
    """Commands for a shell. url: of the endpoint; keyed: whether it asks for a key, which the shell has in `KEY`."""
    key = ['-H "Authorization: Bearer $KEY"'] if keyed else []
    commands = [
        " \\\n    ".join(
            [
                f"curl {shlex.quote(f'{url}/v1/{one.route}')}",
                *key,
                "-H 'content-type: application/json'",
                f"-d {shlex.quote(_json(one))}",
            ]
        )
        for one in sent
    ]
    return "\n\n".join(commands)


def python_lines(url: str, sent: Sequence[SentRequest], keyed: bool) -> str:
    """A program; JSON of texts, numbers, lists and objects is Python as it is."""
    if not sent:
        return ""
    key = """, headers={"Authorization": f"Bearer {os.environ['KEY']}"}""" if keyed else ""
    calls = [f"answer = requests.post({json.dumps(f'{url}/v1/{one.route}')}, json=body{key})" for one in sent]
    parts = [
        f"body = {_json(one)}\n{call}\nanswer.raise_for_status()\nprint(answer.json())"
        for one, call in zip(sent, calls, strict=True)
    ]
    return "\n\n".join([("import os\n\n" if keyed else "") + "import requests", *parts])


def _json(sent: SentRequest) -> str:
    return json.dumps(sent.body, ensure_ascii=False)
