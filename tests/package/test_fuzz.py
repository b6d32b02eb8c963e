"""Any bytes in the place of a file: refused or sound, and never a crash, a touch outside, or too much memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.errors import FormatError
from sparsehub.files import canonical_json
from tests.support.package_fuzzing import GOLDEN, PARTS, attempt, restore, spoilable

pytestmark = [pytest.mark.slow, pytest.mark.soak]
MANIFEST, DELTA, HEAD, CARD = PARTS
NUMBERS = st.sampled_from([-1, 0, 1, 5, 7, 255, 1 << 31, 1 << 40, 1 << 48, 1 << 63, 10**30, 0.0, 0.5, 1e308])
TEXTS = st.sampled_from(["", ".", "..", "../x", "a/b", "a\\b", "\x00", "\u202e", "F32", "BF16", "add", "set", "int8"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def target() -> Iterator[Path]:
    with spoilable() as folder:
        yield folder


@pytest.fixture(autouse=True)
def golden(target: Path) -> None:
    restore(target)


@st.composite
def edited(draw: st.DrawFn, good: bytes) -> bytes:
    """Some bytes changed, cut out, put in or repeated."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        stop = min(len(data), start + draw(st.integers(0, 8)))
        data[start:stop] = draw(st.binary(max_size=8) | st.just(bytes(data[start:stop]) * 2))
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, table: Any) -> Any:
    """A copy of a JSON value, with one value anywhere in it replaced, taken out, or put in."""
    if not isinstance(table, dict | list) or not table or draw(st.integers(0, 4)) == 0:
        return draw(VALUES)
    changed = dict(table) if isinstance(table, dict) else dict(enumerate(table))
    key = draw(st.sampled_from(sorted(changed)))
    if draw(st.integers(0, 7)) == 0:
        del changed[key]
    else:
        changed[key] = draw(altered(changed[key]))
    if isinstance(table, dict) and draw(st.integers(0, 7)) == 0:
        changed[draw(TEXTS | st.text(max_size=8))] = draw(VALUES)
    return changed if isinstance(table, dict) else list(changed.values())


@st.composite
def files_of_tensors(draw: st.DrawFn, good: bytes) -> bytes:
    """A safetensors file whose header is another one, over the same data or other data."""
    length = 8 + struct.unpack("<Q", good[:8])[0]
    header = json.dumps(draw(altered(json.loads(good[8:length])))).encode()
    data = draw(st.just(good[length:]) | edited(good[length:]))
    return struct.pack("<Q", draw(st.just(len(header)) | st.integers(0, 1 << 63))) + header + data


def golden_bytes(part: str) -> bytes:
    return (GOLDEN / part).read_bytes()


@pytest.mark.parametrize("part", PARTS)
@given(data=st.data())
def test_any_bytes_are_sound_or_refused(target: Path, part: str, data: st.DataObject) -> None:
    attempt(target, part, data.draw(edited(golden_bytes(part)) | st.binary(max_size=200)))


@given(table=altered(json.loads(golden_bytes(MANIFEST))))
def test_any_manifest_is_sound_or_refused(target: Path, table: Any) -> None:
    try:
        data = canonical_json(table)
    except FormatError:
        data = json.dumps(table).encode()
    attempt(target, MANIFEST, data)


@pytest.mark.parametrize("part", [DELTA, HEAD])
@given(data=st.data())
def test_any_header_is_sound_or_refused(target: Path, part: str, data: st.DataObject) -> None:
    attempt(target, part, data.draw(files_of_tensors(golden_bytes(part))))


@given(numbers=st.lists(st.integers(0, 255), min_size=48, max_size=48))
def test_any_numbers_in_a_delta_are_sound_or_refused(target: Path, numbers: list[int]) -> None:
    """The header stays: counts, values and offsets are anything."""
    attempt(target, DELTA, golden_bytes(DELTA)[:-48] + bytes(numbers))


@given(text=st.text(max_size=400))
def test_a_card_of_text_is_refused_for_its_control_characters_alone(target: Path, text: str) -> None:
    controls = {c for c in text if c < " " or "\x7f" <= c <= "\x9f"} - {"\t", "\n"}
    assert attempt(target, CARD, text.encode()) == (not controls)


@pytest.mark.parametrize("part", PARTS)
def test_the_files_that_they_start_from_are_sound(target: Path, part: str) -> None:
    assert attempt(target, part, golden_bytes(part))
