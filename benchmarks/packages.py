"""Packages of random tasks on the real backbone, for the benchmarks of engine and endpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import whole_delta
from sparsehub.backbone import Backbone, open_checkpoint
from sparsehub.files import new_folder
from sparsehub.package import Manifest, Package, TaskSpec
from sparsehub.package.manifest import BackboneRef, DeltaRecord, TouchedParameter
from sparsehub.package.writer import file_records, write_manifest, write_tensors

BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
SPEC = TaskSpec(
    "text-classification", ("a", "b", "c"), "single_label_classification", ("text",), "label", 128, ("accuracy",)
)


def example_texts() -> list[str]:
    path = Path(__file__).parents[1] / "examples" / "support" / "topic" / "train.jsonl"
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def random_package(backbone: Backbone, seed: int) -> Package:
    """A package in memory: a random delta of 0.5% and a random head."""
    from sparsehub.package.task_model import load_task_model

    delta = whole_delta(backbone, seed)
    task_model = load_task_model(open_checkpoint(str(backbone.checkpoint.folder)), SPEC)
    parameters = dict(task_model.model.named_parameters())
    head = {name: torch.randn_like(parameters[name]) * 0.1 for name in task_model.head}
    return Package(manifest_of(backbone, delta, seed), delta, head, f"sha256:{seed:064x}")


def numbered(package: Package, backbone: Backbone, number: int) -> dict[str, Any]:
    """What makes a package another task's."""
    delta = whole_delta(backbone, number)
    head = {name: tensor + 0.01 * number for name, tensor in package.head.items()}
    return {
        "manifest": manifest_of(backbone, delta, number),
        "delta": delta,
        "head": head,
        "digest": f"sha256:{number:064x}",
    }


def manifest_of(backbone: Backbone, delta: Any, number: int) -> Manifest:
    touched = {
        name: TouchedParameter(part.shape, backbone.digest_of(name), len(part.indices))
        for name, part in delta.parameters.items()
    }
    checkpoint, total = backbone.checkpoint, backbone.arena.numel
    ref = BackboneRef(BACKBONE, "", backbone.architecture, checkpoint.dtype, checkpoint.fingerprint, total)
    record = DeltaRecord("random", delta.nnz / total, delta.nnz, "add", "float16", touched)
    return Manifest(1, f"task{number}", "1.0.0", SPEC, ref, record, {})


def write_random(backbone: Backbone, number: int, path: Path) -> Path:
    package = random_package(backbone, number)
    write_bare(path, package.manifest, package)
    return path


def write_bare(path: Path, manifest: Manifest, package: Package) -> None:
    """Write a package without card and pictures, which take longer to make than the rest and are not measured."""
    with new_folder(path) as folder:
        write_tensors(folder, manifest, package.delta, package.head)
        write_manifest(folder, dataclasses.replace(manifest, files=file_records(folder.iterdir())))


def save_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(open_checkpoint(BACKBONE).folder).save_pretrained(folder)
