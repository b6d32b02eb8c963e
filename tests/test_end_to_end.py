"""The main job with real processes on the real backbone: train, push, serve, ask, materialise, compare."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
DATA = ROOT / "examples" / "support"


VERBS = """
import json, sys
from sparsehub.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise
"""


def sparsehub(*verbs: Sequence[str], cache: Path) -> list[Any]:
    """Run verbs with --json in a process of their own, one after the other; returns what each printed."""
    environment = {**os.environ, "SPARSEHUB_CACHE": str(cache)}
    command = [sys.executable, "-c", VERBS, json.dumps([[*verb, "--json"] for verb in verbs])]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@contextmanager
def served(backbone: str, hub: Path, cache: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "SPARSEHUB_CACHE": str(cache)}
    command = [
        sys.executable,
        "-m",
        "sparsehub",
        "serve",
        "--backbone",
        backbone,
        "--hub",
        str(hub),
        "--compile",
        "off",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the endpoint ended"
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_from_a_data_set_to_a_served_answer(tmp_path: Path, real_backbone: str) -> None:
    cache, packages, hub = tmp_path / "cache", tmp_path / "packages", tmp_path / "hub"
    common = ["--backbone", real_backbone, "--calibration-batches", "4", "--max-length", "64"]

    def data(name: str) -> list[str]:
        return ["--train", str(DATA / name / "train.jsonl"), "--test", str(DATA / name / "test.jsonl"), "--name", name]

    def trained(name: str, kind: str, epochs: int, head: str) -> Any:
        more = [
            "--head",
            head,
            "--kind",
            kind,
            "--text",
            "text",
            "--epochs",
            str(epochs),
            "--out",
            str(packages / name),
        ]
        return sparsehub(["train", *common, *data(name), *more], cache=cache)[0]

    with ThreadPoolExecutor() as both:  # two processes, of a thread each
        topic, urgency = both.map(
            trained, ("topic", "urgency"), ("text-classification", "regression"), (1, 2), ("transformers", "linear")
        )
    assert topic["metrics"]["test"]["accuracy"] > topic["metrics"]["test (majority)"]["accuracy"] + 0.15
    assert urgency["metrics"]["test"]["pearson"] > 0.5

    full = tmp_path / "full"
    manifest, _, _, listed, _ = sparsehub(
        ["inspect", str(packages / "topic")],
        *(["push", str(packages / name), str(hub), "--version", "1.0.0"] for name in ("topic", "urgency")),
        ["ls", str(hub)],
        ["materialize", "topic@1.0.0", "--hub", str(hub), "--backbone", real_backbone, "--out", str(full)],
        cache=cache,
    )
    beside = sum(manifest["manifest"]["files"][name]["size"] for name in ("head.safetensors", "README.md"))
    assert (manifest["bytes"] - beside) / topic["nnz"] <= 4.6
    assert [entry["name"] for entry in listed] == ["topic", "urgency"]

    texts = [json.loads(line)["text"] for line in (DATA / "topic" / "test.jsonl").read_text().splitlines()[:12]]
    with served(real_backbone, hub, cache) as url:
        answer = post(f"{url}/v1/classify", {"model": "topic", "input": texts})
        scored = post(
            f"{url}/v1/score", {"model": "urgency@1.0.0", "input": ["The office is on fire", "Lovely, thanks"]}
        )
    assert answer["task"] == "topic@1.0.0"
    assert scored["data"][0]["score"] > scored["data"][1]["score"]
    assert_like_plain_transformers(full, texts, answer["data"])


def assert_like_plain_transformers(folder: Path, texts: list[str], data: list[dict[str, Any]]) -> None:
    """Load the checkpoint as a stranger to sparsehub would, and compare every probability."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, entry in zip(texts, data, strict=True):
        with torch.inference_mode():
            wanted = model(**tokenizer(text, return_tensors="pt", truncation=True)).logits.softmax(-1)[0]
        assert entry["probs"] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert model.config.id2label[int(wanted.argmax())] == entry["label"]
