"""How to use a package: the shell and Python lines that its card and its HTML report show."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from sparsehub.package.manifest import Manifest
from sparsehub.package.task_spec import (
    EMBEDDING,
    MULTIPLE_CHOICE,
    REGRESSION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    TaskSpec,
)


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
    route, body = example_request(manifest.name, manifest.task)
    return (
        f"sparsehub serve --backbone {backbone} --hub HUB --task {reference}",
        f"curl localhost:3000/v1/{route} -H 'content-type: application/json' -d {shlex.quote(body)}",
        f"sparsehub materialize {reference} --hub HUB --backbone {backbone} --out full/{manifest.name}",
    )


def _python(manifest: Manifest) -> tuple[str, ...]:
    """Public names of sparsehub only. transformers has no pipeline for multiple choice."""
    task, reference = manifest.task, f'"{manifest.name}@{manifest.version}"'
    opened = ("import sparsehub", "", 'hub = sparsehub.open_hub("HUB")')
    if task.kind == EMBEDDING:
        loaded = f'model = sparsehub.load({reference}, hub=hub, library="sentence-transformers")'
        return (*opened, loaded, 'vectors = model.encode(["...", "..."])')
    if task.kind == MULTIPLE_CHOICE:
        return (*opened, f"model = sparsehub.load({reference}, hub=hub)  # an ordinary transformers model")
    text = '{"text": "...", "text_pair": "..."}' if len(task.text_fields) == 2 else '"..."'
    return (
        *opened,
        f"task = sparsehub.pipeline({reference}, hub=hub)  # an ordinary transformers pipeline",
        f"print(task({text}))",
    )


def example_request(model: str, task: TaskSpec) -> tuple[str, str]:
    """The route below /v1 that answers rows of a task, and a JSON body for it. model: what the task is called there."""
    if task.kind == TEXT_GENERATION:
        return "completions", json.dumps({"model": model, "prompt": "...", "max_tokens": 64})
    if task.kind == EMBEDDING:
        return "embeddings", json.dumps({"model": model, "input": ["..."]})
    route = "score" if task.kind == REGRESSION else "classify"
    return route, f'{{"model": "{model}", "input": {_rows(task)}}}'


def _rows(task: TaskSpec) -> str:
    """One row of the task as JSON: a text where it has one field, else an object by field name."""
    fields = (*task.text_fields, *task.choice_fields)
    one = len(fields) == 1 or task.kind == TOKEN_CLASSIFICATION
    return json.dumps(["..." if one else dict.fromkeys(fields, "...")], ensure_ascii=False)


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text).replace("`", "'")
