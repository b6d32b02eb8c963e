"""Every malicious package is refused, by its own rule and with its own message, and costs no more than it declares."""

from __future__ import annotations

import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsehub.errors import FormatError
from sparsehub.hub import open_hub
from sparsehub.package import read_package, validate_package
from tests.support.malicious_packages import CASES, Case

GOLDEN = Path(__file__).parents[1] / "golden" / "package"
SLACK = 24 << 20  # bytes beside the twofold of what a package declares: a JSON text, and its values


def declared(folder: Path) -> int:
    """Bytes that are really there, holes in files left out."""
    return sum(path.lstat().st_blocks * 512 for path in folder.iterdir())


def refusal(read: Callable[[Path], Any], folder: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read(folder)
    message = str(caught.value)
    message.encode()  # whatever the package says, the message can be printed
    assert len(message) < 2_000
    return message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_it_is_refused_with_its_own_message(folder: Path, case: Case) -> None:
    case.change(folder)
    tracemalloc.start()
    try:
        message = refusal(validate_package, folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.search(case.message, message), message
    assert peak < 2 * declared(folder) + SLACK
    assert refusal(read_package, folder) == message, "with tensors and without"


def test_no_two_rules_say_the_same(tmp_path: Path) -> None:
    assert len({case.rule for case in CASES}) == len(CASES) >= 40
    said: dict[str, str] = {}
    for number, case in enumerate(CASES):
        folder = shutil.copytree(GOLDEN, tmp_path / str(number))
        case.change(folder)
        message, (rule, _, _) = refusal(validate_package, folder).replace(str(folder), "it"), case.rule.partition(" ")
        assert said.setdefault(message, rule) == rule, case.rule
    assert len(said) >= len(CASES) - 4, "all but a few ways to break one rule have their own words too"


@pytest.mark.parametrize("case", CASES[:: len(CASES) // 12], ids=lambda case: case.rule)
def test_none_of_them_gets_into_a_hub(folder: Path, tmp_path: Path, case: Case) -> None:
    case.change(folder)
    with pytest.raises(FormatError):
        open_hub(tmp_path / "hub").publish(folder)
    assert not (tmp_path / "hub").exists()


def test_the_package_that_they_spoil_is_sound(tmp_path: Path) -> None:
    validate_package(shutil.copytree(GOLDEN, tmp_path / "package"))
