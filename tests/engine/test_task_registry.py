"""Which task a reference means, while tasks come, go and are replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine
from sparsehub.errors import BackboneMismatchError, FormatError, UnknownTaskError, UsageError
from sparsehub.kernels import position_dtype
from sparsehub.package import Package, read_package

Close = Callable[..., bool]


@pytest.fixture
def engine(tiny_tasks: Any) -> Engine:
    return Engine(load_backbone(str(tiny_tasks.folder)))


def answer(engine: Engine, reference: str, item: Any = "the fox") -> tuple[str, Any]:
    """The digest that answered, and the answer."""
    ticket = engine.classify(reference, [item])
    engine.step()
    assert ticket.task is not None
    return ticket.task.digest, ticket.futures[0].result(0)


def test_an_unknown_task_names_the_nearest(engine: Engine, suite: Mapping[str, Path]) -> None:
    with pytest.raises(UnknownTaskError, match="none is served"):
        engine.classify("three", ["a"])
    engine.add(read_package(suite["three"]))
    with pytest.raises(UnknownTaskError, match="did you mean 'three'"):
        engine.classify("thre", ["a"])
    with pytest.raises(UnknownTaskError, match=r"did you mean 'three@1\.0\.0'"):
        engine.classify("three@1.0.1", ["a"])
    with pytest.raises(UnknownTaskError):
        engine.embed("other", ["a"])


def test_a_task_is_found_by_name_version_and_digest(engine: Engine, suite: Mapping[str, Path]) -> None:
    digest = engine.add(read_package(suite["three"])).digest
    for reference in ("three", "three@1.0.0", f"three@{digest}"):
        assert answer(engine, reference)[0] == digest


def test_a_new_version_takes_the_bare_name_and_the_old_one_keeps_its_own(
    engine: Engine, tiny_tasks: Any, suite: Mapping[str, Path], close: Close
) -> None:
    newer = tiny_tasks.write("three", labels=5, version="2.0.0", seed=21)
    old, new = engine.add(read_package(suite["three"])), engine.add(read_package(newer))
    references = {old.digest: tiny_tasks.reference(suite["three"]), new.digest: tiny_tasks.reference(newer)}
    asked = {"three": new, "three@2.0.0": new, "three@1.0.0": old, f"three@{old.digest}": old}
    for reference, task in asked.items():
        digest, found = answer(engine, reference)
        assert digest == task.digest
        assert close(found, references[digest]("the fox"))


def test_rows_queued_before_a_reload_are_answered_by_the_package_that_their_ticket_names(
    engine: Engine, tiny_tasks: Any, suite: Mapping[str, Path], close: Close
) -> None:
    newer = tiny_tasks.write("three", labels=5, version="2.0.0", seed=21)
    old = engine.add(read_package(suite["three"]))
    before = engine.classify("three", ["the fox", "a dog"])
    new = engine.add(read_package(newer))
    after = engine.classify("three", ["the fox", "a dog"])
    while engine.step():
        pass
    for ticket, task, package in ((before, old, suite["three"]), (after, new, newer)):
        assert ticket.task == task
        reference = tiny_tasks.reference(package)
        for text, future in zip(("the fox", "a dog"), ticket.futures, strict=True):
            assert close(future.result(0), reference(text))


def test_a_task_that_is_removed_while_rows_wait_still_answers_them(
    engine: Engine, tiny_tasks: Any, suite: Mapping[str, Path], close: Close
) -> None:
    task = engine.add(read_package(suite["three"]))
    ticket = engine.classify("three", ["the fox"])
    assert engine.tasks.find("three").digest == task.digest
    engine.remove("three")
    with pytest.raises(UnknownTaskError):
        engine.classify("three", ["the fox"])
    engine.step()
    assert close(ticket.futures[0].result(0), tiny_tasks.reference(suite["three"])("the fox"))


def test_removing_the_newer_version_rolls_back_to_the_older(engine: Engine, tiny_tasks: Any, suite: Any) -> None:
    old = engine.add(read_package(suite["three"]))
    engine.add(tiny_tasks.read("three", labels=5, version="2.0.0", seed=21))
    engine.remove("three@2.0.0")
    assert answer(engine, "three")[0] == old.digest
    assert [task.digest for task in engine.tasks.all()] == [old.digest]


def test_adding_an_older_package_again_makes_it_the_bare_names_meaning(
    engine: Engine, tiny_tasks: Any, suite: Mapping[str, Path]
) -> None:
    old = engine.add(read_package(suite["three"]))
    engine.add(tiny_tasks.read("three", labels=5, version="2.0.0", seed=21))
    engine.add(read_package(suite["three"]))
    assert answer(engine, "three")[0] == old.digest
    assert len(engine.tasks.all()) == 2


def test_the_same_version_with_other_contents_is_refused(engine: Engine, tiny_tasks: Any, suite: Any) -> None:
    served = engine.add(read_package(suite["three"]))
    other = tiny_tasks.read("three", labels=3, seed=99)
    assert other.digest != served.digest
    with pytest.raises(UsageError, match=r"three@1\.0\.0 is served already, with other contents"):
        engine.add(other)
    assert answer(engine, "three")[0] == served.digest


@pytest.fixture
def other_backbone(tiny_tasks: Any, tmp_path: Path) -> Path:
    """The tiny backbone with the lowest bit of one weight flipped."""
    folder = shutil.copytree(tiny_tasks.folder, tmp_path / "other")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4] ^= 1
    weights.write_bytes(data)
    return folder


def test_a_package_for_a_backbone_with_one_other_bit_is_refused(
    engine: Engine, tiny_tasks: Any, suite: Mapping[str, Path], other_backbone: Path
) -> None:
    stranger = tiny_tasks.read("stranger", seed=31, backbone=other_backbone)
    served, base = engine.add(read_package(suite["three"])), engine.backbone.arena.digest()
    answer(engine, "three")
    patched = engine.backbone.arena.digest()
    with pytest.raises(BackboneMismatchError, match="made for another backbone"):
        engine.add(stranger)
    assert [task.digest for task in engine.tasks.all()] == [served.digest]
    assert engine.backbone.arena.digest() == patched != base


def test_a_package_whose_head_does_not_fit_is_refused(engine: Engine, suite: Mapping[str, Path]) -> None:
    sound = read_package(suite["three"])
    head = dict(sound.head)
    head.pop("classifier.bias")
    with pytest.raises(FormatError, match="head does not fit"):
        engine.add(Package(sound.manifest, sound.delta, head, sound.digest))
    assert engine.tasks.all() == []


def test_adding_a_task_while_another_is_in_the_arena_saves_the_base_weights(
    engine: Engine, tiny_tasks: Any, suite: Mapping[str, Path], close: Close
) -> None:
    base = engine.backbone.arena.digest()
    engine.add(read_package(suite["three"]))
    answer(engine, "three")  # from here on its patch is in the arena
    engine.add(read_package(suite["seven"]))
    for name in ("seven", "three", "seven"):
        assert close(answer(engine, name)[1], tiny_tasks.reference(suite[name])("the fox"))
    engine.stop()
    assert engine.backbone.arena.digest() == base


def test_a_task_says_what_memory_it_holds(engine: Engine, suite: Mapping[str, Path]) -> None:
    package = read_package(suite["three"])
    info = engine.add(package)
    handle = engine._residency.handle(info.digest)
    assert handle is not None and handle.resident is not None and handle.resident.adapter is not None
    head = sum(tensor.nbytes for tensor in package.head.values())
    position = position_dtype(next(iter(engine.backbone.arena.buffers.values()))).itemsize
    patch = package.delta.nnz * (position + 4 + 4)
    (status,) = engine.status()
    assert status.where == "device" and status.pinned
    assert status.nbytes == patch + head + handle.resident.adapter.nbytes
    assert engine.usage.device_bytes == status.nbytes
