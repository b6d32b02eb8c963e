from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsehub import files
from sparsehub.errors import FormatError, UsageError
from sparsehub.files import canonical_json, new_folder, sha256_bytes, sha256_file, strict_json, write_file

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(files.TEMPORARY_PREFIX)]


def test_the_digest_of_bytes_and_of_a_file_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 7)
    (tmp_path / "file").write_bytes(b"0123456789" * 3)
    expected = "sha256:" + hashlib.sha256(b"0123456789" * 3).hexdigest()
    assert sha256_file(tmp_path / "file") == sha256_bytes(b"0123456789" * 3) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [1.0, 0.1, 1e-05, 1e16, 1e300, -0.0]}, '{"a":[1.0,0.1,1e-05,1e+16,1e+300,-0.0],"b":1}'),
        ({"Z": None, "a": True, "ä": False, "10": "", "9": ""}, '{"10":"","9":"","Z":null,"a":true,"ä":false}'),
        ('où\n\t\x01\x7f"\\/\u2028😀', '"où\\n\\t\\u0001\x7f\\"\\\\/\u2028😀"'),
        ((), "[]"),
    ],
)
def test_canonical_json_is_pinned(value: Any, text: str) -> None:
    assert canonical_json(value) == text.encode("utf-8")


@given(JSON_VALUES)
def test_canonical_json_comes_back_and_is_a_fixed_point(value: Any) -> None:
    data = canonical_json(value)
    assert strict_json(data, "it") == value
    assert canonical_json(strict_json(data, "it")) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")], {"a": float("nan")}, "\ud800"])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(FormatError, match="JSON cannot hold"):
        canonical_json(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":1,"b":2,"a":3}', "names a key twice; found: a"),
        (b'[{"x":{"a":1,"a":1}}]', "names a key twice"),
        (b'{"a":1,"\\u0061":2}', "names a key twice"),
        (b"[NaN]", "not finite; found: NaN"),
        (b"[Infinity]", "not finite"),
        (b"-Infinity", "not finite"),
        (b"[1e999]", "not finite; found: 1e999"),
        (b"1" * 5_000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"{'a':1}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b"[" * 33 + b"]" * 33, "nested too deeply"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "nested too deeply"),
    ],
)
def test_spoilt_json_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        strict_json(data, "the table")


def test_thirty_two_levels_are_read() -> None:
    assert json.dumps(strict_json(b"[" * 32 + b"]" * 32, "it")) == "[" * 32 + "]" * 32


def test_json_over_the_limit_is_refused() -> None:
    assert strict_json(b'"12345678"', "it", 10) == "12345678"
    with pytest.raises(FormatError, match="it is too large; found: 11 bytes"):
        strict_json(b'"123456789"', "it", 10)


def test_a_small_file_of_very_many_values_is_refused_before_it_is_parsed() -> None:
    for bomb in (b"[" + b"[]," * 400_000 + b"[]]", b"[" + b"0," * 600_000 + b"0]"):
        with pytest.raises(FormatError, match="too many values"):
            strict_json(bomb, "it", 8 << 20)


def test_a_key_that_comes_twice_among_very_many_is_found_at_once() -> None:
    keys = ",".join(f'"{i}":0' for i in range(200_000))
    with pytest.raises(FormatError, match="twice; found: 199999"):
        strict_json(f'{{{keys},"199999":1}}'.encode(), "it")


def test_a_file_is_written_whole_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert not leftovers(path.parent)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert not leftovers(tmp_path)


def test_a_new_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as temporary:
        (temporary / "file").write_text("content")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert (path / "file").read_text() == "content"
    assert path.stat().st_mode & 0o777 == 0o755
    assert not leftovers(path.parent)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_new_folder_never_appears_when_the_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("content")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["empty folder", "file", "link to nothing"])
def test_nothing_that_is_there_is_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "folder"
    {"empty folder": path.mkdir, "file": path.touch, "link to nothing": lambda: path.symlink_to("nowhere")}[kind]()
    with pytest.raises(UsageError, match="exists already"), new_folder(path):
        pytest.fail("the block ran")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_another_wrote_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(UsageError, match="exists already"), new_folder(path) as temporary:
        (temporary / "file").write_text("mine")
        path.mkdir()
        (path / "file").write_text("theirs")
    assert (path / "file").read_text() == "theirs"
    assert not leftovers(tmp_path)
