from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.errors import UsageError
from sparsehub.hub import Reference, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4
names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
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
    assert parse_reference("trec") == Reference("trec")
    assert parse_reference("trec@1.0.0-rc.1") == Reference("trec", version="1.0.0-rc.1")
    assert parse_reference(f"trec@{DIGEST}") == Reference("trec", digest=DIGEST)
