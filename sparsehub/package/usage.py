"""How to use a package: the shell and Python lines that its card and its HTML report show."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from sparsehub.package.manifest import REGRESSION, TEXT_GENERATION, TOKEN_CLASSIFICATION, Manifest, TaskSpec


@dataclass(frozen=True)
class UsageSnippets:
    """Lines to copy from a card or a report: they serve the task, call it, and turn it into a whole checkpoint."""

    shell: tuple[str, ...]
    python: tuple[str, ...]


def usage_snippets(manifest: Manifest) -> UsageSnippets:
    """The snippets of a package. `HUB` in them stands for the hub that the reader found the package in."""
    return UsageSnippets(_shell(manifest), _python(manifest))


def _shell(manifest: Manifest) -> tuple[str, ...]:
    """Names from the manifest are quoted: people paste these lines into a shell."""
    reference, backbone = f"{manifest.name}@{manifest.version}", shlex.quote(_one_line(manifest.backbone.id))
    route, body = _request(manifest)
    return (
        f"sparsehub serve --backbone {backbone} --hub HUB --task {reference}",
        f"curl localhost:3000/v1/{route} -H 'content-type: application/json' -d {shlex.quote(body)}",
        f"sparsehub materialize {reference} --hub HUB --backbone {backbone} --out full/{manifest.name}",
    )


def _python(manifest: Manifest) -> tuple[str, ...]:
    return (
        "from sparsehub.backbone import load_backbone",
        "from sparsehub.engine import Engine",
        "from sparsehub.hub import open_hub",
        "from sparsehub.hub.package_loader import load_package",
        "",
        f"engine = Engine(load_backbone({json.dumps(manifest.backbone.id)}))",
        f'engine.add(load_package("{manifest.name}@{manifest.version}", open_hub("HUB")))',
        "engine.start()",
        _call(manifest),
    )


def _request(manifest: Manifest) -> tuple[str, str]:
    """The route that answers the task's rows, and a JSON body for it."""
    if manifest.task.kind == TEXT_GENERATION:
        return "completions", json.dumps({"model": manifest.name, "prompt": "...", "max_tokens": 64})
    route = "score" if manifest.task.kind == REGRESSION else "classify"
    return route, f'{{"model": "{manifest.name}", "input": {_rows(manifest.task)}}}'


def _call(manifest: Manifest) -> str:
    if manifest.task.kind == TEXT_GENERATION:
        return f'answer = engine.generate("{manifest.name}", "...").result()'
    return f'answer = engine.classify("{manifest.name}", {_rows(manifest.task)}).futures[0].result()'


def _rows(task: TaskSpec) -> str:
    """One row of the task as JSON: a text where it has one field, else an object by field name."""
    fields = (*task.text_fields, *task.choice_fields)
    one = len(fields) == 1 or task.kind == TOKEN_CLASSIFICATION
    return json.dumps(["..." if one else dict.fromkeys(fields, "...")], ensure_ascii=False)


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text).replace("`", "'")
