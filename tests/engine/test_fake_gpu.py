"""Every way of running with its tensors on a GPU that is not there: where two devices meet, it is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sparsehub.backbone import Backbone, load_backbone
from sparsehub.backbone.arena import build_arena
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.batch_rows import BatchRows
from sparsehub.engine.batch_runner import BatchRunner, Clock
from sparsehub.engine.compiled.layer_programs import LayerPasses
from sparsehub.engine.compiled.mixed_pass import MixedPass
from sparsehub.engine.compiled.plain_pass import PlainPass
from sparsehub.engine.cost_model import MIXED, SWAP, TRUNK
from sparsehub.engine.resident import Resident
from sparsehub.engine.state_cache import StateCache
from sparsehub.engine.target_modules import TargetModules, find_target_modules
from sparsehub.engine.task_loader import TaskLoader
from sparsehub.engine.trunk_batch import trunk_batch
from sparsehub.engine.trunk_check import with_layers
from sparsehub.package.encoding import Encoded, encode_ids
from sparsehub.package.task_spec import HeadSpec
from tests.support.fake_gpu import fake_gpu, on_gpu
from tests.support.fake_streams import GPU, StreamOrderError, Streams
from tests.support.tiny_tasks import TinyTasks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the benchmarks and tests run on it")
LINEAR = HeadSpec("linear", "mean", False, "joint")


@dataclass(frozen=True)
class OnGpu:
    """A backbone whose arena is on the fake GPU, and what runs on it."""

    backbone: Backbone
    targets: TargetModules
    arena: ArenaManager
    loader: TaskLoader
    runner: BatchRunner
    tokenizer: Any
    launched: list[str]  # kernels
    streams: Streams

    def resident(self, package: Any) -> Resident:
        return self.loader.place(self.loader.lay_out(package))

    def rows(self, task: Resident | None, *, embed: bool = False, choices: int = 1) -> BatchRows:
        """Two rows of six tokens."""
        (sequence,) = encode_ids(self.tokenizer, [5, 6, 7, 8], 16).sequences
        return BatchRows([Encoded((sequence,) * choices)] * 2, task, embed)


@pytest.fixture
def there(tiny_tasks: TinyTasks, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnGpu]:
    real = load_backbone(str(tiny_tasks.folder))
    tokenizer = load_tokenizer(real.checkpoint)
    layers = with_layers(real, find_target_modules(real)).layers  # found by looking at values
    with fake_gpu(monkeypatch) as gpu, torch.inference_mode():
        on_gpu(real.module)
        backbone = dataclasses.replace(real, arena=build_arena(dict(real.module.named_parameters())))
        targets, arena = dataclasses.replace(find_target_modules(backbone), layers=layers), ArenaManager(backbone, 0)
        loader = TaskLoader(backbone, targets, arena, tokenizer.pad_token_id)
        states = StateCache(backbone, 0, left=False)
        passes = PlainPass(backbone), MixedPass(backbone), LayerPasses()
        runner = BatchRunner(backbone, *passes, targets, arena.swap, tokenizer, states)
        yield OnGpu(backbone, targets, arena, loader, runner, tokenizer, gpu.launched, gpu.streams)


def test_two_devices_in_one_operation_are_an_error(there: OnGpu) -> None:
    assert there.backbone.device == GPU and all(p.device == GPU for p in there.backbone.module.parameters())
    with pytest.raises(Exception, match="two devices, cuda:0 and cpu"):
        there.backbone.arena.view(next(iter(there.backbone.arena.slots))) + torch.zeros(1, 1)


@pytest.fixture(
    params=[
        ("text-classification", None),
        ("token-classification", None),
        ("multiple-choice", None),
        ("text-classification", LINEAR),
    ],
    ids=str,
)
def package(request: pytest.FixtureRequest, tiny_tasks: TinyTasks) -> Any:
    """Read from disk; before there is a fake GPU, since a fake tensor has no bytes."""
    kind, head = request.param
    return tiny_tasks.read("ours", kind, head=head)


@pytest.fixture
def tiny_head(tiny_tasks: TinyTasks) -> Any:
    return tiny_tasks.read("ours", head=LINEAR, delta=False)


def test_a_task_is_loaded_swapped_and_mixed(package: Any, there: OnGpu) -> None:
    """From pinned memory to the device; alone in place, then beside the plain backbone."""
    task = there.resident(package)
    assert task.adapter is not None and task.why_swap is None
    assert all(part.positions.device == GPU for part in task.patch.segments)
    assert all(t.device == GPU for part in task.adapter.parts.values() for t in part.tensors)
    rows = there.rows(task, choices=2 if task.info.spec.kind == "multiple-choice" else 1)
    there.runner.run(SWAP, [rows], Clock())
    assert {"_gather", "_scatter_add"} <= set(there.launched)
    del there.launched[:]
    there.runner.run(MIXED, [rows, there.rows(None, embed=True)], Clock())
    assert {"_scatter_copy", "_sparse_prefill", "_sparse_lookup", "_scale_shift"} <= set(there.launched)


def test_rows_of_one_text_share_their_layers(tiny_head: Any, there: OnGpu) -> None:
    """A head alone, the plain backbone beside it: all layers run once."""
    groups = [there.rows(there.resident(tiny_head)), there.rows(None, embed=True)]
    trunk = trunk_batch(groups, there.targets)
    assert trunk is not None
    there.runner.run(TRUNK, groups, Clock(), trunk)


def test_two_streams_that_use_the_same_memory_wait_for_each_other(there: OnGpu) -> None:
    streams, (buffer,) = there.streams, there.backbone.arena.buffers.values()
    buffer.zero_()
    with torch.cuda.stream(other := torch.cuda.Stream(GPU)):
        with pytest.raises(StreamOrderError, match="add on stream 1 reads what aten::zero_ on the default stream"):
            buffer + 1
        other.wait_stream(streams.default)
        buffer + 1
        mine = torch.zeros(4, device=GPU)
    with pytest.raises(StreamOrderError, match="zero_ on the default stream writes what aten::add on stream 1"):
        buffer.zero_()
    other.synchronize()
    buffer.zero_()
    mine + 1
    del mine
    with pytest.raises(StreamOrderError, match="memory was freed that aten::add on the default stream may still use"):
        torch.zeros(1, device=GPU)
