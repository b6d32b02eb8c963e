"""Bytes on their way: in pieces, broken off, resumed, wrong."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.errors import IntegrityError, UnreachableError
from sparsehub.hub import retry, transfer
from sparsehub.hub.transfer import Download, Meter, download_all, download_bytes
from sparsehub.package.manifest import FileRecord

Open = Callable[[int, int], Iterator[bytes]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE", 1000)


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def record(data: bytes) -> FileRecord:
    return FileRecord(len(data), "sha256:" + hashlib.sha256(data).hexdigest())


def honest(data: bytes, chunk: int = 300) -> Open:
    def open_(start: int, stop: int) -> Iterator[bytes]:
        for begin in range(start, stop, chunk):
            yield data[begin : min(begin + chunk, stop)]

    return open_


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(1, 700))
def test_files_of_any_size_arrive_and_are_counted_once(tmp_path_factory, sizes: list[int], chunk: int) -> None:
    folder = tmp_path_factory.mktemp("download")
    files = {f"{i}.png": content(size, i) for i, size in enumerate(sizes)}
    seen: list[tuple[int, int]] = []
    downloads = [Download(name, record(data), honest(data, chunk)) for name, data in files.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "PIECE", 1000)
        download_all(downloads, folder, Meter(sum(sizes), lambda done, total: seen.append((done, total))))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert not seen or seen[-1] == (sum(sizes), sum(sizes))


def test_a_stream_that_breaks_off_is_asked_for_the_rest(tmp_path: Path, small_pieces: None) -> None:
    data, asked, lock = content(5000), [], threading.Lock()

    def breaking(start: int, stop: int) -> Iterator[bytes]:
        with lock:
            asked.append((start, stop))
            fresh = len(asked) <= 8
        yield data[start : min(start + 400, stop)]
        if fresh:
            raise UnreachableError("the line broke")
        yield data[min(start + 400, stop) : stop]

    seen: list[int] = []
    download_all([Download("x.png", record(data), breaking)], tmp_path, Meter(5000, lambda done, _: seen.append(done)))
    assert (tmp_path / "x.png").read_bytes() == data
    assert any(start % 1000 == 400 for start, _ in asked), "the rest, not the whole piece again"
    assert seen[-1] == 5000


def test_a_stream_that_ends_early_without_a_word_is_resumed_too() -> None:
    data, asked = content(900), []

    def short(start: int, stop: int) -> Iterator[bytes]:
        asked.append(start)
        yield data[start : min(start + 250, stop)]

    assert download_bytes(Download("x.png", record(data), short)) == data
    assert asked == [0, 250, 500, 750]


def test_a_stream_that_breaks_behind_its_last_byte_is_whole() -> None:
    data, asked = content(500), []

    def late(start: int, stop: int) -> Iterator[bytes]:
        asked.append(start)
        yield data[start:stop]
        raise UnreachableError("the line broke")

    assert download_bytes(Download("x.png", record(data), late)) == data
    assert asked == [0]


def test_a_hub_that_never_answers_is_given_up_after_a_few_tries(tmp_path: Path) -> None:
    data, tries = content(10), []

    def dead(start: int, stop: int) -> Iterator[bytes]:
        tries.append(start)
        raise UnreachableError("no answer")
        yield b""

    with pytest.raises(UnreachableError, match="no answer"):
        download_all([Download("x.png", record(data), dead)], tmp_path, Meter(10, None))
    assert len(tries) == retry.ATTEMPTS


def test_a_hub_that_hangs_is_given_up_sooner_unless_something_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    now, data, tries = 0.0, content(900), []
    monkeypatch.setattr("time.monotonic", lambda: now)

    def slow(start: int, stop: int) -> Iterator[bytes]:
        nonlocal now
        now += retry.GIVE_UP + 1
        tries.append(start)
        yield data[start : start + given]

    given = 250
    assert download_bytes(Download("x.png", record(data), slow)) == data
    assert tries == [0, 250, 500, 750]
    given = 0
    with pytest.raises(UnreachableError, match="broke off"):
        download_bytes(Download("x.png", record(data), slow))
    assert tries[4:] == [0]


def test_the_waits_double_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.25)
    monkeypatch.setattr("time.sleep", waits.append)
    for attempt in range(8):
        retry.wait_before(attempt)
    for attempt, wait in enumerate(waits):
        assert min(8.0, 0.25 * 2**attempt) / 2 <= wait <= min(8.0, 0.25 * 2**attempt)


def test_what_an_earlier_attempt_left_is_kept(tmp_path: Path, small_pieces: None) -> None:
    data, asked = content(5000), []
    (tmp_path / "x.png").write_bytes(data[:3100])

    def watched(start: int, stop: int) -> Iterator[bytes]:
        asked.append(start)
        return honest(data)(start, stop)

    seen: list[int] = []
    download_all([Download("x.png", record(data), watched)], tmp_path, Meter(5000, lambda done, _: seen.append(done)))
    assert (tmp_path / "x.png").read_bytes() == data
    assert min(asked) == 3100 and seen[-1] == 5000


@pytest.mark.parametrize("left", [b"wrong" * 100, content(6000), b""])
def test_wrong_bytes_of_an_earlier_attempt_cost_one_more_download(tmp_path: Path, small_pieces: None, left) -> None:
    data = content(5000)
    (tmp_path / "x.png").write_bytes(left)
    seen: list[int] = []
    download = Download("x.png", record(data), honest(data))
    download_all([download], tmp_path, Meter(5000, lambda done, _: seen.append(done)))
    assert (tmp_path / "x.png").read_bytes() == data
    assert seen[-1] == 5000


@pytest.mark.parametrize("place", [0, 999, 1000, 4999])
def test_a_flipped_byte_is_found_and_nothing_is_left(tmp_path: Path, small_pieces: None, place: int) -> None:
    data = content(5000)
    flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    with pytest.raises(IntegrityError, match=r"x\.png is damaged in the hub"):
        download_all([Download("x.png", record(data), honest(flipped))], tmp_path, Meter(5000, None))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IntegrityError, match="damaged"):
        download_bytes(Download("x.png", record(data), honest(flipped)))


def test_a_hub_that_sends_too_much_is_cut_off(tmp_path: Path, small_pieces: None) -> None:
    data, sent = content(5000), []

    def endless(start: int, stop: int) -> Iterator[bytes]:
        while True:
            sent.append(1)
            yield bytes(600)

    with pytest.raises(IntegrityError, match="more bytes than there can be"):
        download_all([Download("x.png", record(data), endless)], tmp_path, Meter(5000, None))
    assert len(sent) <= 2 * 8


def test_pieces_of_one_file_come_side_by_side_and_few_wait_in_memory(tmp_path: Path, small_pieces: None) -> None:
    data, running, most, lock = content(40_000), 0, 0, threading.Lock()

    def counted(start: int, stop: int) -> Iterator[bytes]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        yield data[start:stop]
        with lock:
            running -= 1

    download_all([Download("x.png", record(data), counted)], tmp_path, Meter(40_000, None))
    assert 1 < most <= transfer.REQUESTS
    assert (tmp_path / "x.png").read_bytes() == data


def test_one_bad_file_stops_the_others(tmp_path: Path, small_pieces: None) -> None:
    good, bad = content(50_000), content(100, 1)

    def slow(start: int, stop: int) -> Iterator[bytes]:
        yield good[start:stop]

    downloads = [Download("bad.png", record(bad), honest(bytes(100))), Download("good.png", record(good), slow)]
    with pytest.raises(IntegrityError, match="bad"):
        download_all(downloads, tmp_path, Meter(50_100, None))
