from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsehub
from sparsehub.errors import RequestError, SparsehubError, UsageError
from sparsehub.package.manifest import check_name
from sparsehub.task_ref import (
    TaskRef,
    Term,
    check_task_name,
    compose,
    is_pattern,
    is_safe,
    parse_model,
    parse_reference,
)

pytestmark = pytest.mark.soak
DIGEST = "sha256:" + "0123456789abcdef" * 4
names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True).filter(lambda name: name != "backbone")
versions = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}(-rc[0-9]{1,4})?(\+b[0-9]{1,4})?", fullmatch=True)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@given(names, st.none() | versions | digests)
def test_a_reference_survives_being_written_and_parsed(name: str, pin: str | None) -> None:
    text = name if pin is None else f"{name}@{pin}"
    parsed = parse_reference(text)
    assert str(parsed) == text
    assert (parsed.name, parsed.version or parsed.digest) == (name, pin)
    assert (parsed.digest is not None) == (pin is not None and pin.startswith("sha256:"))


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused_with_the_forms(text: str) -> None:
    try:
        parsed = parse_reference(text)
    except UsageError as error:
        assert "name@version" in str(error)
    else:
        assert str(parsed) == text
        assert not {"/", "\\", "\0", "\n"} & set(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "@1.0.0",
        "trec@",
        "Trec",
        "a/b",
        "../trec",
        "a..b",
        "trec@../1",
        "trec@1..0",
        "trec@1.0.0\n",
        "trec@1@2",
        "trec@" + "1" * 65,
        "t" * 97,
        "trec@sha256:abc",
        DIGEST.upper().join(["trec@", ""]),
        "trec@" + DIGEST + "0",
        "trec@" + "a" * 64,
        "trec@sha256-abc",
    ],
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a task reference"):
        parse_reference(text)


def test_the_three_forms() -> None:
    assert parse_reference("trec") == TaskRef("trec")
    assert parse_reference("trec@1.0.0-rc.1") == TaskRef("trec", version="1.0.0-rc.1")
    assert parse_reference(f"trec@{DIGEST}") == TaskRef("trec", digest=DIGEST)


@given(st.text(max_size=40))
def test_what_a_request_says_as_its_model_is_read_without_a_complaint_and_written_the_same(text: str) -> None:
    model = parse_model(text)
    assert str(model) == str(model.task) == text


def test_a_reference_may_be_read_as_a_composition_too() -> None:
    model = parse_model("trec@1.0+tone@2.0*0.50")
    assert model.task == TaskRef("trec", version="1.0+tone@2.0*0.50")
    assert model.terms == (
        Term(TaskRef("trec", version="1.0")),
        Term(TaskRef("tone", version="2.0"), 0.5, "*0.50"),
    )
    assert model.names == ("trec", "tone")
    assert parse_model(f"trec@{DIGEST}").terms == () and parse_model("trec").names == ("trec",)


def test_a_composition_keeps_its_weights_as_they_were_written() -> None:
    terms = parse_model(" trec@1.0.0 + tone*0.50 ").terms
    assert str(compose(terms)) == "trec@1.0.0+tone*0.50"
    assert compose(terms).terms == terms


@pytest.mark.parametrize("text", ["a+", "+a", "*2", "a*x", "a*nan", "a*1e999", "a**2", "a++b"])
def test_a_malformed_composition_is_refused_where_it_is_read_as_one(text: str) -> None:
    with pytest.raises(RequestError, match="not a composition"):
        _ = parse_model(text).names


def test_one_task_is_meant_by_its_name_its_version_or_its_digest() -> None:
    meant = [TaskRef("a"), TaskRef("a", version=""), TaskRef("a", version="1.0"), TaskRef("a", digest=DIGEST)]
    assert all(task.matches("1.0", DIGEST) for task in meant)
    assert not TaskRef("a", version="2.0").matches("1.0", DIGEST)


def test_references_are_parsed_in_one_module() -> None:
    """A text is read where it enters: nothing else takes it apart by hand."""
    root = Path(sparsehub.__file__).parents[1]
    by_hand = re.compile(r"(partition|split)\(.[@*+].\)")
    found = [
        path.relative_to(root).as_posix()
        for folder in ("sparsehub", "serving")
        for path in sorted((root / folder).rglob("*.py"))
        if by_hand.search(path.read_text())
    ]
    assert found == ["sparsehub/task_ref.py"]


def test_references_are_parsed_without_numpy_and_torch() -> None:
    code = "import sys, sparsehub.task_ref; print({'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_no_task_is_called_as_the_plain_backbone_is() -> None:
    for call in (check_task_name, parse_reference, check_name):
        with pytest.raises(SparsehubError, match="no task may be called backbone"):
            call("backbone")
    with pytest.raises(UsageError, match="no task may be called backbone"):
        parse_reference("backbone@1.0.0")
    assert not is_safe("backbone") and is_safe("backbones")
    assert parse_model("backbone").names == ("backbone",), "what a request says is any text"


@pytest.mark.parametrize("model", ["*", "support-*", "*-topic", "a*b", "sup*-x*", "*a"])
def test_a_star_that_no_number_follows_is_a_pattern(model: str) -> None:
    assert is_pattern(model)


@pytest.mark.parametrize(
    "model", ["trec", "trec*0.5", "a*1", "a*-1", "a*.5", "a+b*0.5", "a*+b", "a@1*", "a*@1", "", "A*"]
)
def test_a_weight_is_none(model: str) -> None:
    assert not is_pattern(model)
