from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sparsehub.package.encoding import Encoded
from sparsehub.package.outputs import Prediction, answers
from sparsehub.package.task_spec import TaskSpec

MakeTask = Callable[..., TaskSpec]
ROW = Encoded(({"input_ids": [1, 2, 3]},))


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(logits)) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_class_has_a_probability_for_every_label(make_task: MakeTask, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0], [0.0, 0.0, 0.5]], dtype=dtype)
    found = answers(make_task("text-classification"), [ROW, ROW], logits)
    assert [answer.label for answer in found] == ["so so", "good"]
    for answer, row in zip(found, logits.tolist(), strict=True):
        assert answer.scores == pytest.approx(softmax(row), abs=1e-6)
        assert sum(answer.scores) == pytest.approx(1, abs=1e-6)
        assert (answer.value, answer.words) == (None, ())


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits_are_still_probabilities(make_task: MakeTask, scale: float) -> None:
    (found,) = answers(make_task("text-classification"), [ROW], torch.tensor([[1.0, 2.0, 3.0]]) * scale)
    assert found == Prediction(label="good", scores=(0.0, 0.0, 1.0))


def test_a_choice_is_named_by_its_field(make_task: MakeTask) -> None:
    found = answers(make_task("multiple-choice"), [ROW, ROW], torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    assert [answer.label for answer in found] == ["second", "first"]
    assert found[1].scores == pytest.approx(softmax([2.0, 1.0]), abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 1), (3,)])
def test_a_regression_is_its_value(make_task: MakeTask, shape: tuple[int, ...]) -> None:
    found = answers(make_task("regression"), [ROW] * 3, torch.tensor([0.5, -2.0, 7.25]).view(shape))
    assert found == [Prediction(value=0.5), Prediction(value=-2.0), Prediction(value=7.25)]


def test_a_word_is_answered_at_its_first_token_and_padding_never(make_task: MakeTask) -> None:
    logits = torch.zeros(2, 5, 3)
    logits[0, 1, 2] = logits[0, 3, 1] = logits[1, 1, 1] = 4.0
    logits[:, 0], logits[:, 2], logits[:, 4] = torch.tensor([9.0, 0, 0]), torch.tensor([9.0, 0, 0]), 9.0
    rows = [Encoded(ROW.sequences, (1, 3)), Encoded(ROW.sequences, (1,))]
    found = answers(make_task("token-classification"), rows, logits)
    assert [[word.label for word in answer.words] for answer in found] == [["I-NAME", "B-NAME"], ["B-NAME"]]
    for answer in found:
        assert (answer.label, answer.scores) == (None, ())
        assert all(sum(word.scores) == pytest.approx(1, abs=1e-6) for word in answer.words)


def test_a_row_without_words_has_no_answers(make_task: MakeTask) -> None:
    assert answers(make_task("token-classification"), [ROW], torch.zeros(1, 2, 3)) == [Prediction()]
