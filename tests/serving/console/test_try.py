"""The tab Try: several tasks in one request, lines to copy, examples of a package."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import shlex
import subprocess
from contextlib import redirect_stdout
from typing import Any

import pytest

from serving.console.answer_cards import cards_of
from serving.console.examples import TaskExample, examples_in
from serving.console.fan_out import FanOut, ask_tasks
from serving.console.snippets import curl_lines, python_lines
from serving.console.task_forms import SentRequest, ShownAnswer, form_of
from sparsehub.package import read_manifest
from tests.support.console_users import Asker

TEXT = "the 'quick' \"brown\" fox $HOME \n \u2028 \U0001f98a"


def asked(server: Any, references: list[str], *texts: str) -> tuple[FanOut, Asker]:
    ask = Asker(server.client)
    return asyncio.run(ask_tasks(ask, references, texts)), ask  # type: ignore[arg-type]


def test_tasks_that_read_the_same_text_are_one_request(server: Any) -> None:
    found, ask = asked(server, ["three", "seven", "words", "several", "rating"], "the fox")
    assert ask.posted == ["/v1/classify", "/v1/score"]
    assert found.sent[0].body["model"] == ["three", "seven", "words", "several"]
    assert [answer.task for answer in found.answers] == ["three", "seven", "words", "several", "rating"]
    for answer in found.answers:
        alone, _ = asked(server, [answer.task], "the fox")
        (same,) = alone.answers
        assert same.words == answer.words
        assert (same.probabilities or {}) == pytest.approx(answer.probabilities or {}, abs=1e-5)
        assert f"answered by <b>{answer.task}@1.0.0</b>" in answer.text


def test_a_task_that_cannot_be_asked_has_its_error_in_its_place(server: Any) -> None:
    found, ask = asked(server, ["three", "no<b>body", "pair", "three", ""], "the fox")
    assert ask.posted == ["/v1/classify"] and [answer.task for answer in found.answers] == [
        "three",
        "no<b>body",
        "pair",
        "",
    ]
    assert found.answers[0].probabilities
    for answer, why in zip(found.answers[1:], ("unknown task", "it reads other texts", "choose a task"), strict=True):
        assert answer.probabilities is None and 'role="alert"' in answer.text and why in answer.text
    assert "<b>body" not in cards_of(found.answers)


def test_two_fields_are_given_by_their_names(server: Any) -> None:
    found, _ = asked(server, ["pair", "three"], "a fox", "a dog", "of no field")
    (sent,) = found.sent
    assert list(sent.body["input"][0].values()) == ["a fox", "a dog"] and found.answers[0].probabilities
    assert "it reads other texts" in found.answers[1].text


def test_looking_at_a_task_is_not_using_it(server: Any) -> None:
    asked(server, ["seven"], "the fox")  # its package is read by now
    before = use_of(server, "seven")
    assert asyncio.run(form_of(Asker(server.client), "seven@1.0.0")).gives == "label"  # type: ignore[arg-type]
    assert use_of(server, "seven") == before


def use_of(server: Any, name: str) -> Any:
    found = next(task for task in server.client.get("/v1/tasks").json()["data"] if task["name"] == name)
    return found["requests"], found["last_used"]


def test_the_lines_to_copy_give_the_same_answer(server: Any) -> None:
    found, _ = asked(server, ["three", "words", "rating"], TEXT)
    url = f"http://127.0.0.1:{server.port}"
    said = io.StringIO()
    with redirect_stdout(said):
        exec(python_lines(url, found.sent, keyed=False), {})
    shares = eval(said.getvalue().splitlines()[0])["data"][0]["data"][0]["probs"]
    assert shares == pytest.approx(list((found.answers[0].probabilities or {}).values()), abs=1e-5)
    for one, command in zip(found.sent, curl_lines(url, found.sent, keyed=False).split("\n\n"), strict=True):
        words = shlex.split(command)
        assert words[0] == "curl" and words[1] == f"{url}/v1/{one.route}" and json.loads(words[-1]) == one.body


def test_a_key_is_never_among_the_lines_to_copy() -> None:
    sent = [SentRequest("classify", {"model": "a", "input": ["b"]})]
    python = python_lines("http://x", sent, keyed=True)
    compile(python, "snippet", "exec")
    assert "os.environ['KEY']" in python and "Bearer $KEY" in curl_lines("http://x", sent, keyed=True)
    assert (
        subprocess.run(["bash", "-n", "-c", curl_lines("http://x'; ls", sent, keyed=True)], check=False).returncode == 0
    )
    assert python_lines("http://x", [], keyed=True) == ""


def test_a_card_has_the_five_most_probable_labels() -> None:
    shares = {f"<i>{i}": i / 36 for i in range(9)}
    html = cards_of([ShownAnswer("", probabilities=shares, task="<u>"), ShownAnswer("", words=[("<s>", "<q>")])])
    assert html.count("<li>") == 5 and "and 4 more labels" in html and "22%" in html
    assert not any(tag in html for tag in ("<u>", "<i>8", "<s>", "<q>"))


ROW = {"expected": "a", "given": "b", "right": False}


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ([{"text": "my parcel", **ROW}, {"text": " ", **ROW}], ["my parcel"]),
        ([{"text": str(i), **ROW} for i in range(50)], [str(i) for i in range(6)]),
        ("abc", []),
        ([{"text": 5, **ROW}], []),
    ],
)
def test_examples_are_what_the_package_carries(suite: Any, examples: Any, expected: list[str]) -> None:
    manifest = read_manifest(suite["three"])
    training = {**manifest.training, "results": {"split": "test", "examples": examples}}
    carrying = dataclasses.replace(manifest, training=training)
    assert [example.texts[0] for example in examples_in(carrying)] == expected
    assert examples_in(manifest) == []
    assert examples_in(dataclasses.replace(carrying, task=read_manifest(suite["pair"]).task)) == []


def test_a_long_example_is_shown_by_its_beginning() -> None:
    assert TaskExample(("a" * 500, "b")).label == "a" * 89 + "…" and TaskExample(("a", "b")).label == "a | b"
