"""What every method trains, an engine serves: all of them from one backbone, as plain transformers would answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from sparsehub.backbone import Checkpoint, load_backbone
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.engine import Engine
from sparsehub.package import Package, read_package, validate_package
from sparsehub.package.manifest import HEAD_METHOD
from sparsehub.package.materialize import task_model_of
from sparsehub.training import TrainConfig, train
from sparsehub.training.method import method_named, method_names

pytestmark = pytest.mark.slow
EVERY = [name for name in method_names() if method_named(name).packages and name != HEAD_METHOD]  # no delta: test_probe
TEXTS = ["a good film", "what a boring slow story", "lovely to watch", "bad"]
Configure = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def packages(make_config: Configure, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    folder, found = tmp_path_factory.mktemp("packages"), {}
    for method in EVERY:
        density = 0.02 if method_named(method).defaults.get("density") is None else None
        out = str(folder / method)
        result = train(make_config(method=method, name=method, density=density, epochs=1, out=out))
        assert validate_package(result.folder).delta.method == method
        found[method] = read_package(result.folder)
    return found


@pytest.fixture(scope="module")
def engine(packages: dict[str, Package], make_config: Configure) -> Iterator[Engine]:
    engine = Engine(load_backbone(make_config().backbone))
    for package in packages.values():
        engine.add(package)
    engine.start()
    yield engine
    engine.stop()


@pytest.mark.parametrize("method", EVERY)
def test_a_package_is_proved_and_served(
    packages: dict[str, Package], engine: Engine, checkpoint: Checkpoint, method: str
) -> None:
    ticket = engine.classify(method, TEXTS)
    answers = [future.result(60) for future in ticket.futures]
    whole, tokenizer = task_model_of(packages[method], checkpoint).model.eval(), load_tokenizer(checkpoint)
    for text, answer in zip(TEXTS, answers, strict=True):
        with torch.no_grad():
            wanted = whole(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert answer.scores == pytest.approx(wanted.tolist(), abs=1e-4)


def test_together_they_are_not_one_and_the_same(engine: Engine) -> None:
    tickets = [engine.classify(method, TEXTS) for method in EVERY]
    scores = {tuple(round(s, 5) for f in ticket.futures for s in f.result(60).scores) for ticket in tickets}
    assert len(scores) > len(EVERY) // 2 and "adapter" not in EVERY


def test_what_is_trained_is_told_whole(packages: dict[str, Package]) -> None:
    for method, package in packages.items():
        assert package.manifest.delta.nnz == package.delta.nnz > 0
        assert package.manifest.training["seed"] == 42, method
        assert package.manifest.metrics["validation"]["accuracy"] >= 0
