from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

from sparsehub.errors import ManifestError, SparsehubError, UsageError
from sparsehub.settings import Naming, flag_of
from sparsehub.training import TrainConfig
from sparsehub.training.config_file import load_config
from sparsehub.training.run import run_identity

LEAST: dict[str, Any] = {
    "backbone": "owner/name",
    "kind": "text-classification",
    "name": "task",
    "train": "train.csv",
    "text": "text",
    "out": "out",
}
YAML = """
backbone: owner/name
kind: text-classification
name: task
train: train.csv
text: [question, answer]
out: out
density: 0.01
epochs: 3
"""


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.yaml"
    path.write_text(YAML, encoding="utf-8")
    return path


def test_flags_alone_make_a_configuration_with_the_defaults_of_the_page() -> None:
    config = load_config(None, {**LEAST, "density": None, "labels": None})
    assert config == TrainConfig(**{**LEAST, "text": ("text",)})
    assert (config.method, config.value_dtype, config.label) == ("sam", "float16", "label")
    full = config.resolved()
    assert (full.density, full.granularity, full.calibration_batches) == (0.005, "global", 64)
    assert (full.learning_rate, full.epochs) == (2e-3, None)


def test_a_method_has_its_own_learning_rate_unless_one_is_given() -> None:
    config = load_config(None, {**LEAST, "method": "full"})
    assert config.resolved().learning_rate == 1e-4
    assert dataclasses.replace(config, learning_rate=3e-5).resolved().learning_rate == 3e-5


def test_a_file_alone_makes_a_configuration(yaml_file: Path) -> None:
    config = load_config(yaml_file, {})
    assert (config.text, config.density, config.epochs) == (("question", "answer"), 0.01, 3.0)


def test_flags_win_over_the_file_and_absent_flags_do_not(yaml_file: Path) -> None:
    config = load_config(yaml_file, {"density": 0.02, "epochs": None, "text": "one"})
    assert (config.density, config.epochs, config.text) == (0.02, 3.0, ("one",))


def test_lists_are_split_at_commas() -> None:
    config = load_config(None, {**LEAST, "text": "a, b", "labels": "no, yes,,maybe "})
    assert (config.text, config.labels) == (("a", "b"), ("no", "yes", "maybe"))


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("2E-05", 2e-5), ("0.5", 0.5), ("1", 1.0)])
def test_numbers_without_a_dot_are_numbers_although_yaml_takes_them_for_texts(
    yaml_file: Path, text: str, value: float
) -> None:
    yaml_file.write_text(YAML + f"learning_rate: {text}\n", encoding="utf-8")
    assert load_config(yaml_file, {}).learning_rate == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("densty: 0.1", "unknown key 'densty', did you mean 'density'"),
        ("7: 1", "unknown key '7'"),
        ("batch_size: 1.5", r"task\.yaml\.batch_size has the wrong type; found: float 1.5; expected: int"),
        ("batch_size: true", "batch_size has the wrong type; found: bool"),
        ("learning_rate: fast", "learning_rate has the wrong type; found: str 'fast'; expected: float"),
        ("learning_rate: .nan", "learning_rate is not finite"),
        ("learning_rate: nan", "learning_rate is not finite"),
        ("version: 1.0", "version has the wrong type; found: float"),
        ("labels: [0, 1]", r"labels\[0\] has the wrong type; found: int 0; expected: str"),
        ("validation: [a]", "validation has the wrong type"),
    ],
)
def test_what_a_file_says_wrongly_is_named(yaml_file: Path, line: str, message: str) -> None:
    yaml_file.write_text(YAML + line + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_config(yaml_file, {})


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "text", "\x00"])
def test_a_file_that_holds_no_mapping_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"x\.yaml"):
        load_config(tmp_path / "x.yaml", LEAST)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"there is no file .*nowhere\.yaml; found: working folder"):
        load_config(tmp_path / "nowhere.yaml", LEAST)
    with pytest.raises(UsageError, match="binary cannot be read as YAML"):
        load_config(tmp_path / "binary", LEAST)


def test_yaml_makes_no_objects(yaml_file: Path) -> None:
    yaml_file.write_text("name: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        load_config(yaml_file, LEAST)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").touch()
    assert load_config(tmp_path / "x.yaml", LEAST) == load_config(None, LEAST)


@pytest.mark.parametrize("name", list(LEAST))
def test_what_is_needed_is_named_where_it_lacks(name: str) -> None:
    with pytest.raises(UsageError, match=f"lacks {name}"):
        load_config(None, {key: value for key, value in LEAST.items() if key != name})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "classification"}, "unknown kind 'classification', did you mean"),
        ({"method": "sams"}, "did you mean 'sam'"),
        ({"granularity": "column"}, "unknown granularity 'column'"),
        ({"label": ""}, "label is empty; to do: give it a value, or leave it out"),
        ({"backbone": ""}, "backbone is empty; to do: give it a value"),
        ({"precision": "bf16"}, "unknown precision 'bf16'"),
        ({"value_dtype": "float8"}, "unknown value dtype 'float8', did you mean 'float32'"),
        ({"text": "a,b,c"}, "one or two text fields; found: a, b, c"),
        ({"text": ","}, "one or two text fields; found: none"),
        ({"choices": "a,b"}, "choices belong to multiple-choice"),
        ({"kind": "multiple-choice"}, "choices belong to multiple-choice"),
        ({"density": 1.5}, r"density is out of range; found: 1\.5; expected: 0 to 1"),
        ({"density": -0.1}, "density is out of range"),
        ({"batch_size": 0}, "batch_size is out of range"),
        ({"accumulation": 0}, "accumulation is out of range"),
        ({"calibration_batches": 0}, "calibration_batches is out of range"),
        ({"max_length": 0}, "max_length is out of range"),
        ({"warmup": 1.1}, "warmup is out of range"),
        ({"clip": -1.0}, "clip is out of range"),
        ({"weight_decay": -0.1}, "weight_decay is out of range"),
        ({"patience": -1}, "patience is out of range"),
        ({"evaluation_steps": -5}, "evaluation_steps is out of range"),
        ({"seed": -1}, "seed is out of range"),
        ({"seed": 1 << 32}, "seed is out of range"),
        ({"epochs": 0.0}, "epochs must be above zero"),
        ({"learning_rate": 0.0}, "learning_rate must be above zero"),
    ],
)
def test_values_that_make_no_sense_are_refused_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(None, {**LEAST, **changes})


@pytest.mark.parametrize("changes", [{"name": "Big Name"}, {"name": ""}, {"version": "v 1"}])
def test_names_and_versions_are_those_that_a_package_may_have(changes: dict[str, Any]) -> None:
    with pytest.raises(ManifestError) as caught:
        load_config(None, {**LEAST, **changes})
    assert isinstance(caught.value, SparsehubError)


def test_the_identity_differs_where_any_setting_does() -> None:
    config = load_config(None, LEAST)
    assert run_identity(config) == run_identity(load_config(None, LEAST))
    others = [{"seed": 1}, {"out": "other"}, {"labels": ("a", "b")}, {"revision": "main"}, {"weight_decay": 0.1}]
    identities = {run_identity(dataclasses.replace(config, **change)) for change in others}  # type: ignore[arg-type]
    assert len(identities | {run_identity(config)}) == len(others) + 1


def test_the_identity_differs_where_a_data_file_does(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "label": 0}')
    config = load_config(None, {**LEAST, "train": str(rows)})
    before = run_identity(config)
    rows.write_text('{"text": "a", "label": 1}')
    assert run_identity(config) != before


@pytest.mark.parametrize("flag", [{"patience": 2}, {"metric": "accuracy"}])
def test_what_needs_a_validation_split_says_so(flag: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs a validation split"):
        load_config(None, {**LEAST, "validation": None, **flag})


def test_one_text_is_one_field() -> None:
    config = TrainConfig(**LEAST)
    assert config.text == ("text",)
    more = {
        "choices": "choice",
        "kind": "multiple-choice",
        "include": "encoder.*",
        "exclude": "*.bias",
        "labels": "yes",
    }
    found = TrainConfig(**{**LEAST, **more})
    assert (found.choices, found.include, found.exclude, found.labels) == (
        ("choice",),
        ("encoder.*",),
        ("*.bias",),
        ("yes",),
    )
    assert TrainConfig(**{**LEAST, "text": ["a", "b"]}).text == TrainConfig(**{**LEAST, "text": ("a", "b")}).text


def test_a_path_may_be_a_path_or_a_text() -> None:
    names = ("backbone", "train", "validation", "test", "out")
    as_text = {**LEAST, **{name: f"some/{name}" for name in names}}
    as_path = {**LEAST, **{name: Path("some") / name for name in names}}
    assert TrainConfig(**as_path) == TrainConfig(**as_text)
    assert run_identity(TrainConfig(**as_path)) == run_identity(TrainConfig(**as_text))


def test_a_configuration_is_a_frozen_value_that_can_be_replaced_and_sent() -> None:
    config = TrainConfig(**LEAST, options={})
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, epochs=2).epochs == 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3  # type: ignore[misc]
    with pytest.raises(UsageError, match="TrainConfig: unknown key 'densty', did you mean 'density'"):
        TrainConfig(**LEAST, densty=1)
    with pytest.raises(UsageError, match="batch_size is out of range; found: 0; expected: at least 1"):
        dataclasses.replace(config, batch_size=0)


def test_an_error_names_the_flag_or_the_key_that_was_wrong(yaml_file: Path) -> None:
    naming = Naming("train", lambda name: flag_of(TrainConfig, name))
    yaml_file.write_text(YAML + "batch_size: 0\nvalidation: dev.csv\n", encoding="utf-8")
    for given, message in (
        ({}, f"{yaml_file}.batch_size is out of range; found: 0; expected: at least 1"),
        ({"batch_size": -1}, "--batch-size is out of range; found: -1; expected: at least 1"),
        ({"batch_size": 1, "schedule": "lin"}, "--schedule: unknown schedule 'lin', did you mean 'linear'?"),
        ({"batch_size": 1, "nnz": 5}, f"{yaml_file}.density and --nnz are two ways to say the same"),
        ({"batch_size": 1, "packing": True}, "--packing belongs to text-generation; found: text-classification"),
    ):
        with pytest.raises(UsageError) as caught:
            load_config(yaml_file, given, naming)
        assert str(caught.value).startswith(message)
    for given, message in (
        ({**LEAST, "patience": 2}, "--patience needs a validation split; to do: give --validation"),
        ({"name": "task"}, "train lacks backbone, kind, train, text, out; to do: give --backbone, --kind, --train"),
    ):
        with pytest.raises(UsageError, match=message):
            load_config(None, given, naming)
