"""What makes larger runs possible, each tried with the sparse optimiser: it changes the cost and not the result."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.delta import Delta
from sparsehub.errors import UsageError
from sparsehub.package.manifest import HEAD_METHOD
from sparsehub.package.task_spec import HEADED_KINDS
from sparsehub.training import TrainConfig, fit
from sparsehub.training.batches import Collator, TokenTable
from sparsehub.training.data import load_data
from sparsehub.training.method import method_named, method_names

Configure = Callable[..., TrainConfig]


@pytest.fixture
def plain(make_config: Configure, still: str) -> TrainConfig:
    return make_config(backbone=still, epochs=2, warmup=0.0, head_learning_rate=1e-4, learning_rate=1e-3)


def delta_of(config: TrainConfig, run: Path) -> Delta:
    delta = fit(config, run).delta
    assert delta is not None
    return delta


def vector(delta: Delta) -> Tensor:
    return torch.cat([part.values.float() for _, part in sorted(delta.parameters.items())])


def distance(first: Delta, second: Delta) -> float:
    assert {n: p.indices.tolist() for n, p in first.parameters.items()} == {
        n: p.indices.tolist() for n, p in second.parameters.items()
    }
    a, b = vector(first), vector(second)
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"gradient_checkpointing": True}, 1e-3),
        ({"preload": True}, 1e-6),
        ({"batch_size": 2, "accumulation": 2}, 0.02),
        ({"gradient_checkpointing": True, "accumulation": 2, "batch_size": 2, "preload": True}, 0.02),
        ({"precision": "bfloat16"}, 0.3),
    ],
    ids=str,
)
def test_it_costs_less_and_learns_the_same(
    plain: TrainConfig, tmp_path: Path, changes: dict[str, Any], most: float
) -> None:
    """The mask comes from another run's folder: it is the training that is compared."""
    wanted = delta_of(plain, tmp_path / "plain")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "plain" / "selection.safetensors", tmp_path / "other")
    assert distance(delta_of(dataclasses.replace(plain, **changes), tmp_path / "other"), wanted) < most


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(plain: TrainConfig, tmp_path: Path) -> None:
    """One shape of batch and no evaluation: each would be compiled anew."""
    one = dataclasses.replace(plain, batch_size=12, validation=None, epochs=3, method="random")
    wanted = delta_of(one, tmp_path / "plain")
    assert distance(delta_of(dataclasses.replace(one, compile="aot_eager"), tmp_path / "compiled"), wanted) < 0.02


@pytest.mark.parametrize("method", ["full", "mixout", "diff-pruning", "lora", "adapter"])
def test_the_other_methods_take_it_too(plain: TrainConfig, tmp_path: Path, method: str) -> None:
    everything = dataclasses.replace(
        plain, method=method, gradient_checkpointing=True, accumulation=2, batch_size=2, precision="bfloat16", epochs=1
    )
    assert fit(everything, tmp_path / "run").losses["validation"] > 0


def test_a_model_that_cannot_compute_again_says_so(plain: TrainConfig, tmp_path: Path, monkeypatch: Any) -> None:
    from transformers import BertForSequenceClassification

    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(UsageError, match="BertForSequenceClassification cannot compute its activations again"):
        fit(dataclasses.replace(plain, gradient_checkpointing=True), tmp_path / "run")


@pytest.mark.parametrize(
    "method", [name for name in method_names() if method_named(name).packages and name != HEAD_METHOD]
)
def test_an_interrupted_run_ends_as_it_would_have(
    plain: TrainConfig, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off in the last epoch; what was chosen or found before is not chosen again."""
    density = {"bitfit": 0.1, "full": 1.0, "mixout": 1.0}.get(method, 0.02)
    config = dataclasses.replace(
        plain, method=method, density=density, epochs=2, seed=3, validation=None, evaluation_steps=1
    )
    if method == "mixout":
        config = dataclasses.replace(config, options={"probability": 0.0})  # what it draws is not kept
    whole = delta_of(config, tmp_path / "whole")
    from sparsehub.training.trainable import Trainable

    steps, breaks, last = [0], [True], 5  # of six; the methods of two phases are in their second one
    kept = Trainable._stepped

    def stepped(self: Trainable) -> None:
        steps[0] += 1
        if breaks[0] and steps[0] == last:
            raise KeyboardInterrupt
        kept(self)

    monkeypatch.setattr(Trainable, "_stepped", stepped)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "broken")
    breaks[0], before = False, steps[0]
    again = delta_of(config, tmp_path / "broken")
    assert steps[0] - before <= 3
    if method != "diff-pruning":  # its gates draw, and a resumed run draws on from another place
        assert distance(again, whole) < 0.02


@pytest.mark.parametrize("kind", HEADED_KINDS)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_rows_kept_as_token_ids_make_the_same_batches(
    make_config: Configure, tiny_checkpoint: Callable[[str], Path], kind: str, family: str
) -> None:
    from sparsehub.backbone import open_checkpoint

    data = load_data(make_config(kind))
    collator = Collator(data.task, load_tokenizer(open_checkpoint(str(tiny_checkpoint(family)))))
    table = TokenTable(data.train, collator, torch.device("cpu"))
    assert len(table) == len(data.train.rows)
    for rows in ([0], [3, 1], list(range(len(table)))):
        wanted = collator([(data.train.rows[i], data.train.targets[i]) for i in rows])
        found = collator([table[i] for i in rows])
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name
