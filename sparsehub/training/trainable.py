"""What every training method makes of a task model: something that the Trainer trains and a package is cut from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsehub.backbone import Arena, Backbone, Slot
from sparsehub.delta import Delta
from sparsehub.package.task_model import TaskModel
from sparsehub.training.processes import mean_over_processes


class Trainable(nn.Module):
    """A task model with parameters of its own beside the head.

    The wrapped model's forward pass is transformers' own. `state_dict` is what is trained alone: a checkpoint of a run
    is as small as that. Subclasses say what is trained (`own`), how it gets into the backbone (`write`), and which
    change of the backbone comes out of it (`delta`).
    """

    accepts_loss_kwargs = False  # the Trainer then scales the loss by the accumulation steps itself
    packages: ClassVar[bool] = True  # whether what was trained is a change of the backbone's weights, see `Method`

    def __init__(self, task_model: TaskModel):
        super().__init__()
        self.task: Any = task_model.model
        self.config = task_model.backbone.config
        self.backbone: Backbone = task_model.backbone
        self._arena: Arena = task_model.backbone.arena
        self._head_names = task_model.head
        self.kept = 1.0  # share of the change's squared norm that the last `delta` holds

    def own(self) -> dict[str, nn.Parameter]:
        """What is trained beside the head, under the names that a checkpoint of the run gives it."""
        return {}

    def unsynchronised(self) -> list[Tensor]:
        """Gradients that DistributedDataParallel does not see, because no module's forward pass reads them."""
        return []

    def after_step(self) -> None:
        """Called after each step of the optimiser, before `write`."""

    def write(self) -> None:
        """Put what was trained into the backbone."""

    def delta(self, value_dtype: str) -> Delta:
        """The trained change of the backbone; raises `DataError` if it diverged."""
        del value_dtype
        return Delta({})

    def save_aside(self, folder: Path, *, writes: bool) -> bool:
        """Write what a package cannot hold to a new folder, if there is any; called before `clear`.

        writes: whether this process does; the answer is the same in all.
        """
        del folder, writes
        return False

    def clear(self) -> None:
        """Put the base weights back, bit for bit, and take every hook off the model; what was trained is gone."""

    def forward(self, **batch: Tensor) -> Any:
        return self.task(**batch)

    @property
    def head(self) -> dict[str, nn.Parameter]:
        parameters = dict(self.task.named_parameters())
        return {name: parameters[name] for name in self._head_names}

    def optimizer(
        self, *, learning_rate: float, head_learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """One AdamW over what is trained and the head. Decay acts on changes, so it pulls towards no change."""
        groups = [
            {"params": list(self.own().values()), "lr": learning_rate, "weight_decay": weight_decay},
            {"params": list(self.head.values()), "lr": head_learning_rate, "weight_decay": weight_decay},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
        optimizer.register_step_post_hook(lambda *_: self._stepped())
        return optimizer

    def _stepped(self) -> None:
        self.after_step()
        self.write()

    def average_gradients(self) -> None:
        """Make the gradients the mean over all processes; to be called once a step, before they are clipped."""
        mean_over_processes(self.unsynchronised())

    def leave_to_us(self, names: list[str]) -> None:
        """Parameters (of this module) that DistributedDataParallel shall not touch."""
        # Its reducer looks for the parameters of the module itself under a name that begins with a dot.
        self._ddp_params_and_buffers_to_ignore = [*names, *(f".{name}" for name in names if "." not in name)]

    def _apply(self, fn: Any, recurse: bool = True) -> Trainable:  # noqa: ARG002
        """Stay where the arena is: a moved copy of the weights (`to("cpu:0")` makes one) would no longer be in it."""
        return self

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: p.detach().clone() for name, p in (self.own() | self.head).items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:  # noqa: ARG002
        for name, parameter in (self.own() | self.head).items():
            parameter.copy_(state[name])
        self.write()
        return nn.modules.module._IncompatibleKeys([], [])


def candidates(task_model: TaskModel) -> dict[str, Tensor]:
    """The backbone's parameters that may change, each place once (tied ones under their first name)."""
    seen: dict[Slot, str] = {}
    for name, slot in task_model.backbone.arena.slots.items():
        seen.setdefault(slot, name)
    return {name: task_model.backbone.arena.view(name) for name in seen.values()}
