"""The shared pretrained model: its files (`checkpoint`), its flat memory (`arena`), the loaded model (`backbone`)."""

from typing import TYPE_CHECKING

from sparsehub.lazy import lazy_names

if TYPE_CHECKING:
    from sparsehub.backbone.arena import Arena, Slot
    from sparsehub.backbone.backbone import Backbone, dtype_named, load_backbone, reload
    from sparsehub.backbone.checkpoint import Checkpoint, find_checkpoint, open_checkpoint

__all__ = [
    "Arena",
    "Backbone",
    "Checkpoint",
    "Slot",
    "dtype_named",
    "find_checkpoint",
    "load_backbone",
    "open_checkpoint",
    "reload",
]

_HOMES = {
    **dict.fromkeys(["Arena", "Slot"], "arena"),  # these import torch
    **dict.fromkeys(["Backbone", "dtype_named", "load_backbone", "reload"], "backbone"),
    **dict.fromkeys(["Checkpoint", "find_checkpoint", "open_checkpoint"], "checkpoint"),
}
__getattr__ = lazy_names(__name__, _HOMES)
