"""Packages that somebody made to do harm: one for each rule of docs/format.md, and what must be said about each.

A case changes a sound package in place. Everything that a liar can make right is made right: sizes and digests of the
files in the manifest, and the manifest's canonical form, unless they are what the case is about.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsehub.files import canonical_json, sha256_file

MANIFEST, DELTA, HEAD, CARD, PICTURE = (
    "sparsehub.json",
    "delta.safetensors",
    "head.safetensors",
    "README.md",
    "density.png",
)
Change = Callable[[Path], object]
COUNTS = (3, 2, 0, 1, 1)  # of the golden delta: two parameters, in five blocks
OFFSETS = (0, 1, 65_535, 0, 65_535, 3_391, 5)
VALUES = (0x3800, 0xB400, 0x3E00, 0xC000, 0x3000, 0x4200, 0xBC00)  # float16


@dataclass(frozen=True)
class Case:
    """rule: of docs/format.md; change: of a copy of the golden package; message: a pattern that its refusal matches."""

    rule: str
    change: Change
    message: str


def reseal(folder: Path) -> None:
    """Write the manifest with the sizes and digests of the files as they are now."""
    table = json.loads((folder / MANIFEST).read_bytes())
    for name in table["files"]:
        if (folder / name).is_file():
            table["files"][name] = {"size": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    (folder / MANIFEST).write_bytes(canonical_json(table))


def manifest(path: str, value: Any) -> Change:
    """Another value in the manifest, at a path like `task/labels`; a callable makes it of the old one."""

    def change(folder: Path) -> None:
        table = json.loads((folder / MANIFEST).read_bytes())
        *parents, last = path.split("/")
        place = table
        for parent in parents:
            place = place[parent]
        place[last] = value(place.get(last)) if callable(value) else value
        (folder / MANIFEST).write_bytes(canonical_json(table))

    return change


def manifest_bytes(change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / MANIFEST).write_bytes(change((folder / MANIFEST).read_bytes()))


def dropped(path: str) -> Change:
    def change(folder: Path) -> None:
        table = json.loads((folder / MANIFEST).read_bytes())
        *parents, last = path.split("/")
        place = table
        for parent in parents:
            place = place[parent]
        del place[last]
        (folder / MANIFEST).write_bytes(canonical_json(table))

    return change


def content(name: str, data: bytes | Callable[[bytes], bytes]) -> Change:
    """Other bytes in a file, with the right size and digest in the manifest."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(data((folder / name).read_bytes()) if callable(data) else data)
        reseal(folder)

    return change


def tensors(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file of any header and any data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def head(header: Any, data: bytes = b"") -> Change:
    return content(HEAD, tensors(header, data))


def delta(
    counts: tuple[int, ...] = COUNTS,
    offsets: tuple[int, ...] = OFFSETS,
    values: tuple[int, ...] = VALUES,
    more: dict[str, tuple[str, bytes, int]] | None = None,
    without: str = "",
) -> Change:
    """The golden delta with other numbers. more: further tensors: dtype, bytes and length by name."""
    parts = {
        "counts": ("I32", struct.pack(f"<{len(counts)}i", *counts), len(counts)),
        "indices": ("U16", struct.pack(f"<{len(offsets)}H", *offsets), len(offsets)),
        "values": ("F16", struct.pack(f"<{len(values)}H", *values), len(values)),
        **(more or {}),
    }
    parts.pop(without, None)
    header, data = {}, b""
    for name, (dtype, stored, length) in parts.items():
        header[name] = entry(dtype, [length], [len(data), len(data) + len(stored)])
        data += stored
    return content(DELTA, tensors(header, data))


def int8(integers: tuple[int, ...] = (1,) * 7, scales: tuple[float, ...] = (1.0, 1.0)) -> Change:
    """The golden delta with values of one byte."""

    def change(folder: Path) -> None:
        manifest("delta/value_dtype", "int8")(folder)
        more = {
            "values": ("I8", struct.pack(f"<{len(integers)}b", *integers), len(integers)),
            "scales": ("F32", struct.pack(f"<{len(scales)}f", *scales), len(scales)),
        }
        delta(more=more)(folder)

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def put(name: str, data: bytes = b"x") -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def sparse(name: str, size: int) -> Change:
    """A file that is as large as this and takes no room."""

    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(size)

    return change


_DIGEST = "sha256:" + "0" * 64
PARENT = {"name": "topic", "version": "1.0.0", "digest": _DIGEST, "weight": 1.0}

CASES = [
    # 1: files
    Case("1.1 a folder inside", lambda f: (f / "a.png").mkdir(), r"may not hold; found: 'a\.png'$"),
    Case("1.1 a link to a secret", link("b.png", "/etc/passwd"), r"may not hold; found: 'b\.png'"),
    Case("1.1 a link in a file's place", link(CARD, "/dev/zero"), r"may not hold; found: 'README\.md'"),
    Case("1.1 a pipe", lambda f: os.mkfifo(f / "c.png"), r"may not hold; found: 'c\.png'"),
    Case("1.2 code", put("run.py"), r"may not hold; found: 'run\.py'"),
    Case("1.2 a pickle", put("head.pt"), r"may not hold; found: 'head\.pt'"),
    Case("1.2 a hidden file", put(".env"), r"may not hold; found: '\.env'"),
    Case("1.2 a name of capitals", put("A.PNG"), r"may not hold; found: 'A\.PNG'"),
    Case("1.2 a name with a separator", put("a\\b.png"), r"may not hold; found: 'a\\\\b\.png'"),
    Case("1.3 a file that is not named", put("extra.png"), r"not those of the manifest; found: .*extra\.png"),
    Case(
        "1.3 a file that is absent", lambda f: (f / HEAD).unlink(), r"not those of the manifest; found: README\.md, d"
    ),
    Case(
        "1.3 itself", manifest(f"files/{MANIFEST}", {"size": 1, "sha256": _DIGEST}), r"names a file .*sparsehub\.json"
    ),
    Case(
        "1.3 its signature", manifest("files/model.sig", {"size": 1, "sha256": _DIGEST}), r"names a file .*model\.sig"
    ),
    Case("1.3 a way out", manifest("files/..%2fx.png", {"size": 1, "sha256": _DIGEST}), r"names a file .*\.\.%2fx"),
    Case("1.5 a card of other bytes", content(CARD, b"\xff\xfe"), r"README\.md is not UTF-8"),
    Case("1.5 a card for terminals", content(CARD, b"# a\x1b]0;owned\x07"), r"a control character; found: U\+001B"),
    Case("1.5 a card with C1 controls", content(CARD, "a\x9b31m".encode()), r"a control character; found: U\+009B"),
    Case(
        "1.5 a card of megabytes", manifest(f"files/{CARD}/size", 1 << 21), r"README\.md is larger than a package may"
    ),
    Case("1.5 a page called picture", content(PICTURE, b"<html>" * 9), r"density\.png is not a PNG picture"),
    Case(
        "1.5 a picture of megabytes", manifest(f"files/{PICTURE}/size", 1 << 24), r"density\.png is larger than a pack"
    ),
    Case("1.5 a signature of megabytes", sparse("model.sig", 1 << 21), r"model\.sig is too large; found: 2097152"),
    # 2: JSON and digests
    Case(
        "2.1 a digest in capitals", manifest("backbone/fingerprint", "sha256:" + "A" * 64), "fingerprint is malformed"
    ),
    Case(
        "2.2 a byte order mark",
        manifest_bytes(lambda d: b"\xef\xbb\xbf" + d),
        "not valid JSON; found: Unexpected UTF-8",
    ),
    Case("2.2 a manifest of gigabytes", sparse(MANIFEST, 1 << 32), r"sparsehub\.json is too large; found: 4294967296"),
    Case("2.2 a deep manifest", manifest_bytes(lambda d: b"[" * 33 + b"]" * 33), "nested too deeply"),
    Case("2.2 a very deep manifest", manifest_bytes(lambda d: b'{"a":' * 90_000), "recursion|Expecting value"),
    Case(
        "2.2 a small file of many values", manifest_bytes(lambda d: b"[" + b"[]," * 600_000 + b"0]"), "too many values"
    ),
    Case("2.2 no UTF-8", manifest_bytes(lambda d: d.replace(b"golden", b"gol\xffen")), "can't decode byte 0xff"),
    Case("2.4 white space", manifest_bytes(lambda d: d + b"\n"), "not in canonical form"),
    Case(
        "2.3 a key twice",
        manifest_bytes(lambda d: d[:-1] + b',"version":"1.0.0"}'),
        "names a key twice; found: version",
    ),
    Case("2.3 not a number", manifest_bytes(lambda d: d.replace(b"0.875", b"NaN")), "not finite; found: NaN"),
    Case("2.3 infinity", manifest_bytes(lambda d: d.replace(b"0.875", b"-Infinity")), "not finite; found: -Infinity"),
    Case("2.3 too large a number", manifest_bytes(lambda d: d.replace(b"0.875", b"1e999")), "not finite; found: 1e999"),
    Case("2.3 too long a number", manifest_bytes(lambda d: d.replace(b"200010", b"9" * 5000)), "4300|digits"),
    Case("2.3 half of a pair", manifest_bytes(lambda d: d.replace(b"golden", b"\\ud800")), "cannot be written"),
    Case("2.3 something after the end", manifest_bytes(lambda d: d + b"{}"), "Extra data"),
    Case(
        "2.4 another spelling",
        manifest_bytes(lambda d: d.replace(b"0.875", b"8.75e-1")),
        "canonical form; to do: fetch",
    ),
    # 3: the manifest
    Case("3.1 another version of the format", manifest("format_version", 3), "another format version; found: 3"),
    Case("3.1 no version of the format", dropped("format_version"), "another format version; expected: 1 or 2"),
    Case("3.1 an unknown key", manifest("post_install", "rm -rf /"), "unknown key 'post_install'"),
    Case("3.1 a key less", dropped("backbone"), r"sparsehub\.json lacks backbone"),
    Case("3.1 another type", manifest("task/max_length", "128"), "max_length has the wrong type; found: str '128'"),
    Case("2.4 an integer for a number", manifest("metrics/validation/accuracy", 1), "canonical form"),
    Case("3.1 a truth for an integer", manifest("delta/nnz", True), "nnz has the wrong type; found: bool"),
    Case("3.1 a name with a way out", manifest("name", "../../etc"), r"not a task name; found: '\.\./\.\./etc'"),
    Case("3.1 a name of a line", manifest("name", "a\nb"), r"not a task name; found: 'a\\nb'"),
    Case("3.1 a version with a way out", manifest("version", "1/../../2"), "not a version; found: '1/../../2'"),
    Case("3.1 no delta", dropped(f"files/{DELTA}"), r"does not name delta\.safetensors"),
    Case("3.1 a negative size", manifest(f"files/{CARD}/size", -1), r"the record of README\.md is malformed"),
    Case(
        "3.1 too many files",
        manifest("files", lambda files: {**files, **{f"p{i}.png": files[PICTURE] for i in range(65)}}),
        "names too many files",
    ),
    Case("3.2 an unknown kind", manifest("task/kind", "shell"), "unknown task kind 'shell'"),
    Case("3.2 a wrong problem type", manifest("task/problem_type", "regression"), "'regression' does not fit the kind"),
    Case("3.2 a label twice", manifest("task/labels", ["a", "a"]), "labels are repeated"),
    Case("3.2 one label", manifest("task/labels", ["a"]), "needs at least 2 labels"),
    Case("3.2 choices without a choice", manifest("task/choice_fields", ["a", "b"]), "belong to multiple choice"),
    Case("3.2 no text", manifest("task/text_fields", []), "1 to 2 text fields"),
    Case("3.2 no room", manifest("task/max_length", 0), "max_length 0 is out of range"),
    Case("3.2 all room", manifest("task/max_length", 1 << 40), "max_length 1099511627776 is out of range"),
    Case("3.3 fewer parameters", manifest("backbone/parameters", 5), "more entries than the backbone has"),
    Case("3.4 an unknown kind of value", manifest("delta/value_kind", "exec"), "unknown value kind 'exec'"),
    Case("3.4 an unknown dtype", manifest("delta/value_dtype", "object"), "unknown value dtype 'object'"),
    Case(
        "3.4 exact and rounded",
        both(manifest("delta/value_kind", "set"), manifest("delta/value_dtype", "int8")),
        "exact and cannot be int8",
    ),
    Case("3.4 a wrong density", manifest("delta/density", 0.5), "density is not nnz / parameters"),
    Case("3.4 a wrong sum", manifest("delta/nnz", 8), "nnz is not the sum"),
    Case("3.4 no parameter", manifest("delta/parameters", {}), "changes no parameter"),
    Case(
        "3.4 a malformed digest", manifest("delta/parameters/norm.bias/digest", "md5:0"), "digest of 'norm.bias' is mal"
    ),
    Case("3.4 an absurd shape", manifest("delta/parameters/norm.bias/shape", [1 << 41]), "'norm.bias': absurd shape"),
    Case("3.4 nine extents", manifest("delta/parameters/embed.weight/shape", [1] * 9), "'embed.weight': absurd shape"),
    Case("3.4 a parameter for nothing", manifest("delta/parameters/norm.bias/nnz", 0), "is named but has no entries"),
    Case(
        "3.4 more than there is", manifest("delta/parameters/embed.weight/shape", [2, 2]), "changes more entries than"
    ),
    Case(
        "3.5 a parent without digest", manifest("lineage/parents", [{**PARENT, "digest": "x"}]), "of the parent topic"
    ),
    Case("3.5 a parent with a way out", manifest("lineage/parents", [{**PARENT, "name": "../a"}]), r"found: '\.\./a'"),
    Case("3.5 an army of parents", manifest("lineage/parents", [PARENT] * 1025), "too many parents"),
    Case("3.5 a checkpoint without digest", manifest("lineage/checkpoint", "x"), "needs a name and a digest"),
    # 4: safetensors
    Case(
        "4.1 a header beyond the file",
        content(HEAD, struct.pack("<Q", 1 << 40) + b"{}"),
        "a header of 1099511627776 in",
    ),
    Case("4.1 a header of no length", content(HEAD, b"\x01\x02"), "a header of 2 in 2 bytes"),
    Case("4.1 a header that is no JSON", head(b"{'a':1}"), r"header of head\.safetensors is not valid JSON"),
    Case("4.1 a header that is a list", head([]), r"the header of head\.safetensors is not an object"),
    Case("4.1 a name twice", head(b'{"a":1,"a":1}'), "names a key twice; found: a"),
    Case(
        "4.1 a small header of many values",
        head(b"[" + b"0," * 600_000 + b"0]"),
        r"header of head\.s.* too many values",
    ),
    Case("4.1 a deep header", head(b'{"a":' * 40 + b"1" + b"}" * 40), r"the header of head\.safetensors is nested"),
    Case("4.1 metadata that is none", head({"__metadata__": 5}), "__metadata__ is not an object"),
    Case("4.2 a key more", head({"a": {**entry(), "code": "x"}}, b"1"), "tensor 'a' is malformed"),
    Case("4.2 an unknown dtype", head({"a": entry("OBJECT")}, b"1"), "unknown dtype; found: OBJECT"),
    Case("4.2 shape and size disagree", head({"a": entry("F32", [2])}, b"1"), r"disagree; found: \[2\] F32"),
    Case("4.2 a negative extent", head({"a": entry(shape=[-1])}, b"1"), r"malformed shape or offsets; found: \[-1\]"),
    Case("4.2 nine extents", head({"a": entry(shape=[1] * 9)}, b"1"), r"malformed shape or offsets; found: \[1, 1"),
    Case("4.2 an absurd extent", head({"a": entry(shape=[0, 1 << 60], offsets=[0, 0])}), "absurd shape; found"),
    Case(
        "4.2 an absurd product of extents beside a zero",
        head({"a": entry(shape=[0, 115_292_150_460_680, 146_976], offsets=[0, 0])}),
        "absurd shape; found",
    ),
    Case(
        "4.3 a hole", head({"a": entry(), "b": entry(offsets=[2, 3])}, b"123"), "data of 'b' overlaps another tensor or"
    ),
    Case("4.3 an overlap", head({"c": entry(), "d": entry()}, b"1"), "data of '[cd]' overlaps"),
    Case("4.3 bytes at the end", head({"a": entry()}, b"123"), "trailing bytes; found: 71 bytes; expected: 69"),
    Case("4.3 data that is not there", head({"a": entry()}), "trailing bytes; found: 68 bytes; expected: 69"),
    Case("4.4 no name", head({"": entry()}, b"1"), "tensor '' has a malformed name"),
    Case("4.4 a name of a thousand letters", head({"n" * 1000: entry()}, b"1"), "tensor 'nnnn.* has a malformed name"),
    Case("4.4 a name that cannot be seen", head({"a\u202eb": entry()}, b"1"), r"'a\\u202eb' has a malformed name"),
    Case("4.4 a name with a way out", head({"../../x": entry()}, b"1"), r"named like a path; found: \.\./\.\./x"),
    Case("4.4 a name with a way out elsewhere", head({"..\\x": entry()}, b"1"), r"named like a path; found: \.\.\\x"),
    Case(
        "4.5 a head of NaN",
        head({"w": entry("F32", [1], [0, 4])}, struct.pack("<f", float("nan"))),
        r"'w' holds values that are not finite; found: in head",
    ),
    # 5: the delta
    Case("5.1 a tensor less", delta(without="values"), "the tensors of a delta; found: counts, indices; expected"),
    Case("5.1 a tensor more", delta(more={"x": ("U8", b"1", 1)}), "found: counts, indices, values, x"),
    Case(
        "5.1 counts of another length", delta(counts=(3, 2, 0, 2)), r"'counts' .* found: I32 \[4\]; expected: I32 \[5\]"
    ),
    Case(
        "5.1 values of another length", delta(values=VALUES[:6]), r"'values' .* found: F16 \[6\]; expected: F16 \[7\]"
    ),
    Case("5.1 nothing at all", delta((0,) * 5, (), ()), r"changes nothing; found: indices of shape \(0,\)"),
    Case("5.3 a negative count", delta((3, 2, -1, 2, 1)), "disagree; found: counts of -1 to 3"),
    Case("5.3 counts of another sum", delta((3, 2, 0, 1, 5)), "disagree; found: counts of 0 to 5 in all 11"),
    Case("5.3 a parameter without entries", delta((3, 2, 0, 2, 0)), "'norm.bias' has no entries"),
    Case(
        "5.3 an index twice",
        delta(offsets=(0, 0, *OFFSETS[2:])),
        "'embed.weight': indices are not strictly inc.* entry 1",
    ),
    Case("5.3 a falling index", delta(offsets=(5, 1, *OFFSETS[2:])), "strictly increasing; found: entry 1 of"),
    Case(
        "5.3 beyond the parameter",
        delta(offsets=(*OFFSETS[:6], 6)),
        "'norm.bias': an index is out of range; found: offs",
    ),
    Case(
        "5.3 beyond its last block", delta(offsets=(*OFFSETS[:5], 3_392, 5)), "'embed.weight': an index is out of range"
    ),
    Case(
        "5.3 entries of another parameter",
        delta((3, 1, 0, 1, 2), (*OFFSETS[:4], 3, 4, 5)),
        "'embed.weight' has another n",
    ),
    Case("4.5 a delta of NaN", delta(values=(*VALUES[:6], 0x7E00)), "'norm.bias' holds values that are not finite"),
    Case("4.5 a delta of infinity", delta(values=(0x7C00, *VALUES[1:])), "'embed.weight' holds values that are not f"),
    Case("5.4 a value of -128", int8(integers=(-128, *[1] * 6)), "an int8 value of -128"),
    Case("5.4 a negative scale", int8(scales=(1.0, -1.0)), "a negative scale; found: -1.0"),
    Case("5.4 a scale of NaN", int8(scales=(1.0, float("nan"))), "a scale is not finite"),
    Case("5.4 a product beyond", int8((127,) * 7, (3e38, 1.0)), "times its scale is not finite"),
    Case("5.4 a scale too few", int8(scales=(1.0,)), "scales of the wrong type or number"),
    # 8: reading
    Case(
        "8.4 a truncated file",
        lambda f: (f / DELTA).write_bytes((f / DELTA).read_bytes()[:-1]),
        "delta.* the wrong size",
    ),
    Case("8.4 a file of gigabytes", sparse(HEAD, 1 << 34), r"head\.safetensors has the wrong size"),
    Case(
        "8.4 a changed byte", lambda f: (f / CARD).write_bytes((f / CARD).read_bytes()[:-1] + b"!"), "is damaged or was"
    ),
]
