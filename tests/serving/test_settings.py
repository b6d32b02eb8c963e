from __future__ import annotations

import pytest

from serving.settings import Settings, read_settings
from sparsehub.errors import UsageError

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


def test_without_a_backbone_or_a_source_of_tasks_nothing_starts() -> None:
    with pytest.raises(UsageError, match="no backbone is set; to do: set SPARSEHUB_BACKBONE"):
        read_settings({"SPARSEHUB_HUB": "hub"})
    with pytest.raises(UsageError, match="nothing to serve; to do: set SPARSEHUB_HUB or SPARSEHUB_TASKS"):
        read_settings({"SPARSEHUB_BACKBONE": "b", "SPARSEHUB_TASKS": ""})
