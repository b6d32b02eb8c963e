from __future__ import annotations

import inspect
import pickle
import re

import pytest

from sparsehub import errors
from sparsehub.errors import BackboneError, FormatError, QueueFullError, SparsehubError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


def test_the_message_says_what_was_found_expected_and_to_do() -> None:
    error = FormatError("the file is too short", found=3, expected="8 bytes", fix="fetch it again")
    assert str(error) == "the file is too short; found: 3; expected: 8 bytes; to do: fetch it again"


def test_what_is_not_given_is_not_mentioned() -> None:
    assert str(BackboneError("no such folder")) == "no such folder"
    assert str(BackboneError("no such folder", found="", expected=0)) == "no such folder; found: ; expected: 0"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_a_sparsehub_error_with_a_docstring(kind: type[SparsehubError]) -> None:
    assert issubclass(kind, SparsehubError)
    assert kind.__doc__


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not QueueFullError])
def test_every_error_survives_a_process_boundary(kind: type[SparsehubError]) -> None:
    error = kind("a problem", found=[1, 2], expected="three", fix="count again")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert (copy.problem, copy.found, copy.expected, copy.fix) == ("a problem", [1, 2], "three", "count again")


def test_the_wait_of_a_full_queue_survives_a_process_boundary() -> None:
    copy = pickle.loads(pickle.dumps(QueueFullError("full", retry_after=1.5, fix="wait")))
    assert (copy.retry_after, str(copy)) == (1.5, "full; to do: wait")


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    parents: dict[str, str] = {"SparsehubError": "Exception"}
    above: list[tuple[int, str]] = [(0, "SparsehubError")]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([\s│]*[├└]── )(\w+)", line)
        if found:
            depth = len(found[1])
            above = [item for item in above if item[0] < depth]
            parents[found[2]] = above[-1][1]
            above.append((depth, found[2]))
    assert parents == {kind.__name__: kind.__bases__[0].__name__ for kind in KINDS}
