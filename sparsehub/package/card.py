"""The card: what a package is and how to use it, written from the manifest alone."""

from __future__ import annotations

import json
import shlex

from sparsehub.package.manifest import MULTIPLE_CHOICE, REGRESSION, TOKEN_CLASSIFICATION, Manifest

SHOWN_LABELS = 100


def write_card(manifest: Manifest) -> str:
    """README.md of a package: metadata as the Hugging Face Hub expects it, then text for people."""
    sections = [
        _metadata(manifest),
        _title(manifest),
        _use(manifest),
        _metrics(manifest),
        _task(manifest),
        _made(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(manifest: Manifest) -> str:
    pipeline = "text-classification" if manifest.task.kind == REGRESSION else manifest.task.kind
    lines = [
        "library_name: sparsehub",
        f"base_model: {_yaml(manifest.backbone.id)}",
        "base_model_relation: adapter",
        f"pipeline_tag: {pipeline}",
        *([f"license: {_yaml(manifest.license)}"] if manifest.license else []),
    ]
    return "\n".join(["---", *lines, "---"])


def _yaml(text: str) -> str:
    """A JSON string is a YAML string too, and never taken for a number, a truth value or a comment."""
    return json.dumps(text, ensure_ascii=False)


def _title(manifest: Manifest) -> str:
    delta = manifest.delta
    return (
        f"# {manifest.name} {manifest.version}\n\n"
        f"A sparse task delta for `{manifest.backbone.id}`: it changes {delta.nnz:,} of the backbone's "
        f"{manifest.backbone.parameters:,} parameters ({delta.density:.3%}), chosen by `{delta.method}`, "
        f"and brings its own head. Kind: {manifest.task.kind}."
    )


def _use(manifest: Manifest) -> str:
    name, backbone = manifest.name, manifest.backbone.id
    route, body = _request(manifest)
    return (
        "## Use\n\n```sh\n"
        f"sparsehub serve --backbone {backbone} --hub HUB --task {name}@{manifest.version}\n"
        f"curl localhost:3000/v1/{route} -H 'content-type: application/json' -d {shlex.quote(body)}\n"
        f"sparsehub materialize {name}@{manifest.version} --hub HUB --backbone {backbone} --out full/{name}\n```"
    )


def _request(manifest: Manifest) -> tuple[str, str]:
    task = manifest.task
    fields = (*task.text_fields, *task.choice_fields)
    plain = len(fields) == 1 or task.kind == TOKEN_CLASSIFICATION
    item = "..." if plain else dict.fromkeys(fields, "...")
    route = "score" if task.kind == REGRESSION else "classify"
    return route, json.dumps({"model": manifest.name, "input": [item]}, ensure_ascii=False)


def _metrics(manifest: Manifest) -> str:
    if not manifest.metrics:
        return ""
    names = [name for name in manifest.task.metrics if any(name in row for row in manifest.metrics.values())]
    lines = ["| split | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for split, row in manifest.metrics.items():
        cells = [f"{row[name]:.4f}" if name in row else "" for name in names]
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    note = (
        "Of the package as written, rounding included. `majority` answers the commonest training label (or the mean)."
    )
    return "## Metrics\n\n" + note + "\n\n" + "\n".join(lines)


def _task(manifest: Manifest) -> str:
    task = manifest.task
    lines = [f"- text fields: {', '.join(task.text_fields)}", f"- at most {task.max_length} tokens a sequence"]
    if task.labels:
        kind = "choices" if task.kind == MULTIPLE_CHOICE else "labels"
        more = f" and {len(task.labels) - SHOWN_LABELS} more" if len(task.labels) > SHOWN_LABELS else ""
        lines.append(f"- {len(task.labels)} {kind}: {', '.join(task.labels[:SHOWN_LABELS])}{more}")
    return "## Inputs and outputs\n\n" + "\n".join(lines)


def _made(manifest: Manifest) -> str:
    training = manifest.training
    lines = [f"- {name}: {_plain(value)}" for name, value in training.items() if name != "seconds"]
    lines.append(f"- backbone fingerprint: `{manifest.backbone.fingerprint}`")
    return "## How it was made\n\n" + "\n".join(lines)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return str(value)
