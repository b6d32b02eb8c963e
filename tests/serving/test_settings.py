from __future__ import annotations

import pytest

from serving.settings import BATCH_MODES, COMPILE_MODES, DTYPES, WEIGHTS, Settings, read_settings
from sparsehub.errors import UsageError
from sparsehub.settings import settings_of

ENOUGH = {"SPARSEHUB_BACKBONE": "tiny/bert", "SPARSEHUB_HUB": "hub"}


def test_settings_come_back_from_their_own_variables() -> None:
    settings = Settings("tiny/bert", "main", "hub", ("a@1", "b"), "policy.yaml", "bfloat16", "cuda", 7, 8, 9, 1.5)
    assert read_settings(settings.to_environment()) == settings
    assert read_settings(ENOUGH) == Settings("tiny/bert", hub="hub")


def test_other_variables_are_left_alone() -> None:
    read_settings({**ENOUGH, "PATH": "/bin", "BENTOML_PORT": "x", "SPARSEHUB_CACHE": "/cache"})


def test_tasks_are_a_list_with_commas() -> None:
    found = read_settings({"SPARSEHUB_BACKBONE": "b", "SPARSEHUB_TASKS": " trec@1 ,,cola, "})
    assert found.tasks == ("trec@1", "cola")


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"SPARSEHUB_BACKBON.*did you mean 'SPARSEHUB_BACKBONE'"):
        read_settings({"SPARSEHUB_BACKBON": "b"})
    with pytest.raises(UsageError, match="did you mean 'SPARSEHUB_BATCH_ROWS'"):
        read_settings({**ENOUGH, "SPARSEHUB_BATCH_ROW": "5"})


@pytest.mark.parametrize("variable", ["QUEUE_ROWS", "BATCH_TOKENS", "BATCH_ROWS", "TIMEOUT"])
@pytest.mark.parametrize("text", ["", "many", "1e", "0x10"])
def test_a_wrong_number_is_named(variable: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"SPARSEHUB_{variable} must be a number; found: {text!r}"):
        read_settings({**ENOUGH, f"SPARSEHUB_{variable}": text})


@pytest.mark.parametrize("text", ["nan", "0", "-1", "inf"])
def test_a_time_limit_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="SPARSEHUB_TIMEOUT"):
        read_settings({**ENOUGH, "SPARSEHUB_TIMEOUT": text})


@pytest.mark.parametrize("name", ["BACKBONE", "REVISION", "HUB", "POLICY", "KEYS", "CATALOG", "DEVICE"])
def test_a_setting_that_is_empty_is_refused_and_not_taken_as_absent(name: str) -> None:
    """An endpoint whose policy or keys come from a variable that nobody set would be less guarded than it was meant."""
    with pytest.raises(UsageError, match=f"{name} is empty; to do: give it a value"):
        read_settings({**ENOUGH, f"SPARSEHUB_{name}": ""})


def test_without_a_backbone_nothing_starts() -> None:
    with pytest.raises(UsageError, match="no backbone is set; to do: set SPARSEHUB_BACKBONE"):
        read_settings({"SPARSEHUB_HUB": "hub"})
    assert read_settings({"SPARSEHUB_BACKBONE": "b", "SPARSEHUB_TASKS": ""}) == Settings("b"), "it serves alone"


def test_every_setting_comes_back_from_its_variable() -> None:
    for setting in settings_of(Settings):
        assert setting.variable == f"SPARSEHUB_{setting.name.upper()}"
    settings = Settings("b", tasks="one", timeout=2, console=True, mode="swap", device_mib=5, host_mib=6, new_tokens=7)
    assert settings.tasks == ("one",)
    assert read_settings(settings.to_environment()) == settings
    assert read_settings({**ENOUGH, "SPARSEHUB_CONSOLE": "true", "SPARSEHUB_OPEN": "0"}).console


@pytest.mark.parametrize("text", ["", "yes", "TRUE"])
def test_a_switch_is_true_or_false(text: str) -> None:
    with pytest.raises(UsageError, match=f"SPARSEHUB_OPEN must be True or False; found: {text!r}"):
        read_settings({**ENOUGH, "SPARSEHUB_OPEN": text})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MODE": "fast"}, "SPARSEHUB_MODE: unknown mode 'fast'"),
        ({"DTYPE": "float8"}, "SPARSEHUB_DTYPE: unknown dtype 'float8', did you mean 'float32'"),
        ({"QUEUE_ROWS": "0"}, "SPARSEHUB_QUEUE_ROWS is out of range; found: 0; expected: at least 1"),
        ({"DEVICE_MIB": "-1"}, "SPARSEHUB_DEVICE_MIB is out of range; found: -1; expected: at least 0"),
        ({"TIMEOUT": "0"}, "SPARSEHUB_TIMEOUT must be above zero"),
        ({"KEYS": "k", "OPEN": "1"}, "an endpoint with keys is not open; to do: leave out SPARSEHUB_OPEN"),
        ({"TASKS": "a", "CATALOG": "c"}, "the catalogue says which tasks are served; found: a"),
    ],
)
def test_what_makes_no_sense_is_named_by_its_variable(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_settings({**ENOUGH, **{f"SPARSEHUB_{name}": value for name, value in variables.items()}})


def test_the_names_of_modes_and_dtypes_are_the_engines_own() -> None:
    from sparsehub.backbone.backbone import _DTYPES
    from sparsehub.engine import base_weights
    from sparsehub.engine.batch_planner import MODES
    from sparsehub.engine.compiled import background

    assert set(WEIGHTS) == set(base_weights.WEIGHTS)
    assert set(COMPILE_MODES) == set(background.COMPILE_MODES)
    assert set(DTYPES) == set(_DTYPES) and set(BATCH_MODES) == set(MODES)
