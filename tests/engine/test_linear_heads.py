"""Linear heads and embeddings: what is served is what the materialised folder says, without sparsehub."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import sparsehub
from sparsehub.backbone import load_backbone, open_checkpoint
from sparsehub.engine import BatchReport, Engine, Task
from sparsehub.errors import DataError, FormatError, RequestError, UsageError
from sparsehub.package import read_package
from sparsehub.package.linear_head import LinearHead
from sparsehub.package.materialize import materialize
from sparsehub.package.pooling import default_pooling
from sparsehub.package.task_spec import POOLINGS, HeadSpec

Close = Callable[..., bool]
PAIR = ("a good film", "a bad ending of a long and slow story")
CHOICE = {"text": "the king", "choice1": "of spain", "choice2": "never sleeps in the city"}
TEXTS: dict[str, Any] = {
    "text-classification": "the quick fox",
    "regression": "lovely to watch",
    "multi-label-classification": "an awful story",
    "multiple-choice": CHOICE,
}


def cases() -> list[tuple[str, HeadSpec, Any]]:
    """Every pooling, pair form and kind, and both scales."""
    single = [
        (kind, HeadSpec("linear", pooling, normalize, "joint"), item)
        for kind, item in TEXTS.items()
        for pooling, normalize in itertools.product(POOLINGS, (False, True))
    ]
    forms = [("text-classification", "joint"), ("text-classification", "separate"), ("regression", "joint")]
    forms += [("regression", "separate"), ("regression", "cosine")]
    forms += [("multi-label-classification", "joint"), ("multi-label-classification", "separate")]
    pairs = [
        (kind, HeadSpec("linear", pooling, normalize, pair), PAIR)
        for kind, pair in forms
        for pooling, normalize in (("mean", False), ("first", True))
    ]
    return single + pairs


def plain(folder: Path, kind: str, head: HeadSpec, item: Any) -> list[float]:
    """The scores of a materialised folder, by sentence-transformers alone."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if kind == "multiple-choice":
        logits = model.encode([(item["text"], item["choice1"]), (item["text"], item["choice2"])]).reshape(1, 2)
    elif head.pair == "joint":
        logits = model.encode([item])
    else:
        page = (folder / "README.md").read_text()
        names = {"np": np, "load_file": lambda name: load_file(folder / name), "SentenceTransformer": lambda _: model}
        names |= {"firsts": [item[0]], "seconds": [item[1]]}
        lines = [line for line in page.split("```")[1].splitlines()[1:] if not line.startswith(("import", "from"))]
        exec("\n".join(lines), names)  # what the page says is what is tested
        logits = names["scores"]
    scores = torch.tensor(logits[0])
    if kind == "multi-label-classification":
        return torch.sigmoid(scores).tolist()
    return (scores if kind == "regression" else torch.softmax(scores, -1)).tolist()


@pytest.mark.slow
def test_served_scores_are_those_of_the_materialised_folder(tiny_tasks: Any, close: Close) -> None:
    """One engine serves all of them, by swap and mixed; the same head is two tasks, one of them without a delta."""
    expected, packages = {}, {}
    for number, (kind, head, item) in enumerate(cases()):
        fields = ("text_a", "text_b") if item is PAIR else ("text",)
        for delta in (True, False):
            name = f"linear{number}-{'delta' if delta else 'none'}"
            folder = tiny_tasks.write(name, kind, fields=fields, seed=number, head=head, delta=delta)
            packages[name] = (folder, item)
            expected[name] = plain(tiny_tasks.materialised(folder), kind, head, item)
    for mode in ("swap", "mixed"):
        reports: list[BatchReport] = []
        engine = Engine(
            load_backbone(str(tiny_tasks.folder)), observer=SimpleNamespace(observe=reports.append), mode=mode
        )
        before = engine.backbone.arena.digest()
        for folder, _ in packages.values():
            package = read_package(folder)
            engine.register(Task(package.manifest.name, "1.0.0", package.digest, lambda package=package: package))
            engine.load(package.manifest.name)
        tickets = {name: engine.classify(name, [item] * (1 + len(name) % 3)) for name, (_, item) in packages.items()}
        run_all(engine)
        for name, ticket in tickets.items():
            assert all(close(future.result(0), expected[name]) for future in ticket.futures), (mode, name)
        assert {report.mode for report in reports} <= ({"mixed"} if mode == "mixed" else {"swap", "grouped-swap"})
        engine.stop()
        assert engine.backbone.arena.digest() == before


@pytest.mark.slow
def test_served_vectors_are_those_of_the_materialised_folder(tiny_tasks: Any) -> None:
    """Every pooling and both scales, with and without a delta, beside tasks with heads, by swap and mixed."""
    from sentence_transformers import SentenceTransformer

    expected, packages = {}, []
    for number, (pooling, normalize) in enumerate(itertools.product(POOLINGS, (False, True))):
        for delta in (True, False):
            name = f"vectors{number}-{'delta' if delta else 'none'}"
            head = HeadSpec("none", pooling, normalize)
            folder = tiny_tasks.write(name, "embedding", fields=("a", "b"), seed=number, head=head, delta=delta)
            packages.append(read_package(folder))
            model = SentenceTransformer(str(tiny_tasks.materialised(folder)), device="cpu", local_files_only=True)
            expected[name] = model.encode(list(PAIR))
    classes = read_package(tiny_tasks.write("beside", seed=30, head=HeadSpec("linear", "max", False, "joint")))
    for mode in ("swap", "mixed"):
        engine = Engine(load_backbone(str(tiny_tasks.folder)), mode=mode)
        before = engine.backbone.arena.digest()
        for package in (*packages, classes):
            engine.register(Task(package.manifest.name, "1.0.0", package.digest, lambda package=package: package))
            engine.load(package.manifest.name)
        tickets = {name: engine.embed(name, list(PAIR)) for name in expected}
        beside = (
            engine.embed("beside", list(PAIR)),
            engine.embed(None, list(PAIR)),
            engine.classify("beside", ["a fox"]),
        )
        run_all(engine)
        for name, ticket in tickets.items():
            found = np.array([future.result(0) for future in ticket.futures])
            assert np.abs(found - expected[name]).max() < 1e-4, (mode, name)
        assert all(future.result(0) for ticket in beside for future in ticket.futures)
        with pytest.raises(RequestError, match="gives vectors"):
            engine.classify("vectors0-delta", ["the fox"])
        engine.stop()
        assert engine.backbone.arena.digest() == before


def test_an_embedding_loads_as_what_each_library_has(tiny_tasks: Any) -> None:
    folder = tiny_tasks.write("loaded", "embedding", fields=("a", "b"), seed=31)
    model = sparsehub.load(folder, backbone=tiny_tasks.folder, library="sentence-transformers")
    assert np.allclose(np.linalg.norm(model.encode(list(PAIR)), axis=1), 1)
    assert type(sparsehub.load(folder, backbone=tiny_tasks.folder)).__name__ == "BertModel"
    with pytest.raises(UsageError, match=r"no pipeline.*embeddings"):
        sparsehub.pipeline(folder, backbone=tiny_tasks.folder)


def run_all(engine: Engine) -> None:
    end = time.monotonic() + 60
    while engine.waiting and time.monotonic() < end:
        engine.step(0.05)


def test_heads_of_one_shape_run_as_one_product(tiny_tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[tuple[int, ...]] = []
    plain_product = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a: products.append(tuple(a[2].shape)) or plain_product(*a))
    engine = Engine(load_backbone(str(tiny_tasks.folder)), mode="mixed")
    head = HeadSpec("linear", "mean", False, "joint")
    for seed in range(3):
        package = read_package(tiny_tasks.write(f"one{seed}", labels=4, seed=seed, head=head))
        engine.register(Task(package.manifest.name, "1.0.0", package.digest, lambda package=package: package))
        engine.load(package.manifest.name)
    for seed in range(3):
        engine.classify(f"one{seed}", ["the fox"] * (seed + 1))
    run_all(engine)
    assert products == [(3, 32, 4)]
    engine.stop()


def test_load_and_pipeline_give_the_materialised_scores(tiny_tasks: Any, close: Close) -> None:
    for pair in ("joint", "separate"):
        head = HeadSpec("linear", "mean", False, pair)
        folder = tiny_tasks.write(f"loaded-{pair}", labels=3, fields=("text_a", "text_b"), seed=8, head=head)
        expected = plain(tiny_tasks.materialised(folder), "text-classification", head, PAIR)
        pipeline = sparsehub.pipeline(folder, backbone=tiny_tasks.folder)
        found = pipeline({"text": PAIR[0], "text_pair": PAIR[1]}, top_k=None)
        by_label = {answer["label"]: answer["score"] for answer in found}
        assert close([by_label[f"label{i}"] for i in range(3)], expected)
    model = sparsehub.load(folder, backbone=tiny_tasks.folder)
    with pytest.raises(DataError, match="reads each text of a pair alone"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long))


@pytest.mark.slow
def test_a_materialised_folder_has_its_labels_and_loads_without_sparsehub(tiny_tasks: Any) -> None:
    folder = tiny_tasks.write("alone", labels=3, seed=9, head=HeadSpec("linear", "max", True, "joint"))
    made = tiny_tasks.materialised(folder)
    assert json.loads((made / "config.json").read_text())["id2label"] == {"0": "label0", "1": "label1", "2": "label2"}
    program = (
        "import sys\nsys.modules['sparsehub'] = None\nfrom sentence_transformers import SentenceTransformer\n"
        "print(SentenceTransformer(sys.argv[1], device='cpu').encode(['the fox', 'a film']).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(made)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 3)"


def test_a_linear_head_that_does_not_fit_is_refused(tiny_tasks: Any, tmp_path: Path) -> None:
    package = read_package(
        tiny_tasks.write("misfit", labels=3, seed=10, head=HeadSpec("linear", "mean", False, "joint"))
    )
    wrong = {**package.head, "weight": torch.zeros(3, 31)}
    with pytest.raises(FormatError, match="does not fit"):
        LinearHead(package.manifest.task, wrong, 32, torch.device("cpu"))
    broken = SimpleNamespace(manifest=package.manifest, delta=package.delta, head=wrong)
    with pytest.raises(FormatError, match="does not fit"):
        materialize(broken, open_checkpoint(str(tiny_tasks.folder)), tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "pooling"), [("bert", "mean"), ("roberta", "mean"), ("gpt2", "last"), ("llama", "last")]
)
def test_the_pooling_is_what_the_checkpoint_says_or_fits_the_model(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, family: str, pooling: str
) -> None:
    config = load_backbone(str(tiny_checkpoint(family))).config
    assert default_pooling(tmp_path, config) == pooling
    (tmp_path / "1_Pooling").mkdir()
    for stated in ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(stated))
        assert default_pooling(tmp_path, config) == "first"
