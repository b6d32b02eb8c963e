"""The processes of one run: one, or as many as torchrun or `accelerate launch` started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from safetensors.torch import load
from torch import Tensor

from sparsehub.extras import require
from sparsehub.tensorfile import tensor_bytes


@dataclass(frozen=True)
class Processes:
    """rank: this one's number, from 0; count: of all."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0


def join_processes(device: str) -> Processes:
    """Meet the other processes of the run, where there are any; through gloo on a CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    cpu = device == "cpu"
    state = require("accelerate", "train").PartialState(cpu=cpu, **({"backend": "gloo"} if cpu else {}))
    return Processes(int(state.process_index), int(state.num_processes))


def speaks() -> bool:
    """Whether this process is the one that shows results."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its sum over all processes, in place."""
    if dist.is_available() and dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


def mean_over_processes(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its mean over all processes, in place."""
    for tensor in tensors:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def from_the_first(processes: Processes, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first process's tensors, in every process, bit for bit."""
    if processes.count == 1:
        return dict(tensors)
    data = torch.frombuffer(bytearray(tensor_bytes(tensors)), dtype=torch.uint8) if processes.first else None
    length = torch.tensor([len(data) if data is not None else 0])
    dist.broadcast(length, 0)
    data = data if data is not None else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, 0)
    return load(data.numpy().tobytes())


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
