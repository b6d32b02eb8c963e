"""The whole job on a tiny model: every kind of task from rows to a package that reads back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone import load_backbone
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import BackboneError, DataError, SparsehubError, UsageError
from sparsehub.package import Package, read_package
from sparsehub.package.encoding import collate, encode
from sparsehub.package.reader import check_backbone
from sparsehub.package.task_model import load_task_model
from sparsehub.package.task_spec import HEADED_KINDS
from sparsehub.patch import apply_patch, make_patch
from sparsehub.training import TrainConfig, TrainResult, fit, train
from sparsehub.training.data import TaskData, load_data
from sparsehub.training.metrics import compute
from sparsehub.training.run import open_run
from sparsehub.training.sparse_model import SparseModel

Configure = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def trained(
    make_config: Configure, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[TrainConfig, TrainResult]]:
    """trained(kind): a package of that kind, trained once."""
    made: dict[str, tuple[TrainConfig, TrainResult]] = {}

    def get(kind: str) -> tuple[TrainConfig, TrainResult]:
        if kind not in made:
            dtype = dict(zip(HEADED_KINDS, ("int8", "float32", "float16", "bfloat16", "float32"), strict=True))[kind]
            out = tmp_path_factory.mktemp("trained") / "package"
            config = make_config(kind, out=str(out), value_dtype=dtype)
            made[kind] = config, train(config)
        return made[kind]

    return get


@torch.no_grad()
def evaluated(package: Package, config: TrainConfig, data: TaskData) -> dict[str, float]:
    """The metrics of a package that was read back, one row at a time, with no Trainer about."""
    backbone = load_backbone(config.backbone)
    check_backbone(package.manifest, backbone)
    task_model = load_task_model(backbone.checkpoint, package.manifest.task)
    apply_patch(task_model.backbone.arena, make_patch(task_model.backbone, package.delta))
    parameters = dict(task_model.model.named_parameters())
    for name, tensor in package.head.items():
        parameters[name].copy_(tensor)
    tokenizer, task = load_tokenizer(backbone.checkpoint), package.manifest.task
    split = data.validation
    assert split is not None
    rows = encode(task, tokenizer, split.rows)
    logits = [task_model.model(**collate(tokenizer, [row])).logits[0] for row in rows]
    if task.kind != "token-classification":
        return compute(task, torch.stack(logits).numpy(), torch.tensor(split.targets).numpy())
    words = [row_logits[list(row.word_starts)] for row_logits, row in zip(logits, rows, strict=True)]
    targets = [
        label for row, labels in zip(rows, split.targets, strict=True) for label in labels[: len(row.word_starts)]
    ]
    assert sum(map(len, words)) == len(targets)
    width = max(map(len, words))
    padded = torch.zeros(len(words), width, len(task.labels))
    wanted = torch.full((len(words), width), -100)
    for i, word in enumerate(words):
        padded[i, : len(word)] = word
        wanted[i, : len(word)] = torch.tensor(split.targets[i][: len(word)])
    return compute(task, padded.numpy(), wanted.numpy())


@pytest.mark.parametrize("kind", HEADED_KINDS)
def test_every_kind_of_task_gives_a_package_that_reads_back(trained: Any, kind: str) -> None:
    config, result = trained(kind)
    package = read_package(result.folder)
    assert package.manifest == result.manifest
    assert (package.manifest.task.kind, package.manifest.name) == (kind, "tiny")
    assert 0 < package.delta.nnz <= round(0.02 * package.manifest.backbone.parameters)
    assert package.delta.value_dtype == config.value_dtype
    assert package.manifest.backbone.id == "bert"
    assert {path.name for path in result.folder.parent.iterdir()} == {"package"}
    assert result.package_bytes == sum(path.stat().st_size for path in result.folder.iterdir())


@pytest.mark.parametrize("kind", HEADED_KINDS)
def test_the_metrics_are_those_of_the_package_as_written(trained: Any, kind: str) -> None:
    config, result = trained(kind)
    found = evaluated(read_package(result.folder), config, load_data(config))
    assert result.manifest.metrics["validation"] == pytest.approx(found, abs=1e-4)
    assert set(result.manifest.metrics) == {"validation", "validation (majority)"}


@pytest.mark.parametrize("kind", HEADED_KINDS)
def test_the_manifest_tells_how_it_came_to_be_without_paths(trained: Any, kind: str) -> None:
    config, result = trained(kind)
    told = result.manifest.training
    rows = len(load_data(config).train.rows)
    assert told["data"]["train"] == {"source": f"{kind}.jsonl", "rows": rows}
    assert told["steps"] == 2 * -(-rows // 4)
    assert told["seed"] == 42
    assert str(Path(config.backbone).parent) not in result.manifest.to_bytes().decode()


def weights(config: TrainConfig) -> dict[str, Tensor]:
    arena = load_backbone(config.backbone).arena
    return {name: arena.view(name).clone() for name in arena.slots}


@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_decay": 0.5}, {"precision": "bfloat16"}, {"validation": None}, {"value_dtype": "int8"}],
    ids=str,
)
def test_after_a_run_the_backbone_is_as_it_was_loaded(
    config: TrainConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    fitted = fit(dataclasses.replace(config, epochs=1, **changes), tmp_path / "run")
    arena = fitted.task_model.backbone.arena
    assert (
        arena.digest()
        == load_task_model(fitted.task_model.backbone.checkpoint, fitted.data.task).backbone.arena.digest()
    )
    assert fitted.delta is not None and fitted.delta.nnz


def test_values_too_small_to_be_stored_leave_no_trace_either(config: TrainConfig, tmp_path: Path) -> None:
    quiet = {"learning_rate": 1e-12, "epochs": 1, "value_dtype": "float16", "validation": None}
    small = dataclasses.replace(config, **quiet, head="transformers")
    fitted = fit(small, tmp_path / "run")
    assert fitted.delta is not None and fitted.delta.nnz == 0
    before = weights(config)
    arena = fitted.task_model.backbone.arena
    assert all(torch.equal(arena.view(name), before[name]) for name in arena.slots)
    with pytest.raises(DataError, match="no weight changed"):
        train(small)


def test_while_a_run_goes_on_only_chosen_entries_move(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at after the last step, before the base is put back."""
    from sparsehub.tensorfile import load_tensors
    from sparsehub.training.methods.selected import MASK_FILE

    before, seen = weights(config), {}
    kept = SparseModel.delta

    def spy(self: SparseModel, value_dtype: str) -> Any:
        seen.update({name: self.backbone.arena.view(name).clone() for name in before})
        return kept(self, value_dtype)

    monkeypatch.setattr(SparseModel, "delta", spy)
    fit(dataclasses.replace(config, weight_decay=0.3), tmp_path / "run")
    mask = load_tensors(tmp_path / "run" / MASK_FILE)
    moved = 0
    for name, weight in before.items():
        changed = (weight.view(-1).view(torch.int32) != seen[name].view(-1).view(torch.int32)).nonzero().flatten()
        assert set(changed.tolist()) <= set(mask[name].tolist() if name in mask else [])
        moved += len(changed)
    assert moved > 100


def test_density_zero_trains_the_head_alone(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, density=0.0, head="transformers")
    fitted = fit(config, tmp_path / "run")
    assert fitted.delta is None
    torch.manual_seed(0)
    fresh = load_task_model(fitted.task_model.backbone.checkpoint, fitted.data.task)
    assert set(fitted.head) == set(fresh.head)
    assert fitted.task_model.backbone.arena.digest() == fresh.backbone.arena.digest()
    assert set(fitted.metrics) == {"validation", "validation (majority)"}
    with pytest.raises(DataError, match="nothing to package"):
        train(config)


def test_the_same_seed_gives_the_same_package_but_for_the_clock(config: TrainConfig, tmp_path: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        fitted = fit(dataclasses.replace(config, seed=seed, epochs=1), tmp_path / f"run{len(found)}")
        assert fitted.delta is not None
        found.append((fitted.delta, fitted.head, fitted.metrics))
    (first, head, metrics), (again, same_head, same_metrics), (other, _, _) = found
    assert metrics == same_metrics
    assert all(torch.equal(head[name], same_head[name]) for name in head)
    assert first.parameters.keys() == again.parameters.keys()
    for name, part in first.parameters.items():
        assert torch.equal(part.indices, again.parameters[name].indices)
        assert torch.equal(part.values, again.parameters[name].values)
    assert any(
        not torch.equal(p.values, other.parameters[n].values)
        for n, p in first.parameters.items()
        if n in other.parameters
    )


@pytest.mark.parametrize("method", ["random", "magnitude", "bitfit"])
def test_every_rule_trains(config: TrainConfig, tmp_path: Path, method: str) -> None:
    density = 0.1 if method == "bitfit" else 0.02
    fitted = fit(dataclasses.replace(config, method=method, density=density, epochs=1), tmp_path / "run")
    assert fitted.delta is not None and fitted.delta.nnz
    if method == "bitfit":
        assert {name.rpartition(".")[2] for name in fitted.delta.parameters} == {"bias"}


def test_a_test_split_is_measured_and_no_more(config: TrainConfig, tmp_path: Path) -> None:
    fitted = fit(dataclasses.replace(config, test=config.train, epochs=1), tmp_path / "run")
    assert fitted.metrics["test"] == fitted.metrics["validation"]
    assert set(fitted.training["data"]) == {"train", "validation", "test"}


def test_an_existing_output_is_refused_before_any_work(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    nonsense = dataclasses.replace(config, train="nowhere.csv", backbone="/nowhere")
    with pytest.raises(UsageError, match="out exists already"):
        train(nonsense)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"backbone": "./nowhere"}, BackboneError),
        ({"train": "nowhere.csv"}, DataError),
        ({"metric": "f2"}, UsageError),
        ({"device": "tpu"}, UsageError),
        ({"method": "bitfit", "density": 0.001}, UsageError),
    ],
)
def test_what_cannot_be_trained_leaves_no_package(
    config: TrainConfig, changes: dict[str, Any], error: type[SparsehubError]
) -> None:
    with pytest.raises(error):
        train(dataclasses.replace(config, **changes))
    assert not Path(config.out).exists()
    assert not Path(config.out).with_name(".out.run").exists(), "nothing that a user must know about"


@pytest.mark.parametrize(("begun", "error"), [(True, KeyboardInterrupt), (True, MemoryError), (False, MemoryError)])
def test_a_run_that_breaks_off_says_how_to_go_on(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, begun: bool, error: type[BaseException]
) -> None:
    said: list[str] = []

    def broken(config: TrainConfig, run: Path, report: Any) -> None:
        if begun:
            begin(run)
        raise error

    monkeypatch.setattr("sparsehub.training.run.fit", broken)
    with pytest.raises(error):
        train(config, report=said.append)
    run = Path(config.out).with_name(".out.run")
    assert run.exists() == begun
    assert said[-1].startswith("the same command goes on" if begun else "nothing is left of this run")
    if begun:
        other = dataclasses.replace(config, seed=1)
        if error is KeyboardInterrupt:
            with pytest.raises(UsageError, match="an interrupted run with other settings"):
                open_run(other, run, restart=False, report=said.append)
        else:
            open_run(other, run, restart=False, report=said.append)
            assert "dropping what is left of a run that failed" in said[-1]


def test_an_error_of_a_run_that_goes_on_keeps_what_it_had(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(config.out).with_name(".out.run")
    open_run(config, run, restart=False, report=lambda _: None)
    begin(run)
    monkeypatch.setattr("sparsehub.training.run.fit", _no_backbone)
    with pytest.raises(BackboneError):
        train(config)
    assert (run / "checkpoint-5").exists()


def _no_backbone(config: TrainConfig, run: Path, report: Any) -> None:
    raise BackboneError("the backbone cannot be fetched now")


def begin(run: Path) -> None:
    """A run that has something to go on with."""
    (run / "checkpoint-5").mkdir()
    (run / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5}')


def test_another_run_in_the_folder_is_refused_until_it_is_dropped(config: TrainConfig, tmp_path: Path) -> None:
    said: list[str] = []
    run = open_run(config, tmp_path / "run", restart=False, report=said.append)
    begin(run)
    assert open_run(config, tmp_path / "run", restart=False, report=said.append) == run
    assert said == ["going on with an interrupted run"]
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(UsageError, match=r"an interrupted run with other settings.*--restart"):
        open_run(other, tmp_path / "run", restart=False, report=said.append)
    open_run(other, tmp_path / "run", restart=True, report=said.append)
    assert [path.name for path in run.iterdir()] == ["run.json"]
    begin(run)
    (run / "run.json").write_text("{half")
    with pytest.raises(UsageError, match="other settings"):
        open_run(other, tmp_path / "run", restart=False, report=said.append)


def test_a_run_that_never_got_anywhere_does_not_stand_in_the_way(config: TrainConfig, tmp_path: Path) -> None:
    said: list[str] = []
    open_run(config, tmp_path / "run", restart=False, report=said.append)
    open_run(dataclasses.replace(config, label="other"), tmp_path / "run", restart=False, report=said.append)
    assert said == []
