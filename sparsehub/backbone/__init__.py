"""The shared pretrained model: its files (`checkpoint`), its flat memory (`arena`), the loaded model (`backbone`)."""

from sparsehub.backbone.arena import Arena, Slot
from sparsehub.backbone.backbone import Backbone, dtype_named, load_backbone, reload
from sparsehub.backbone.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Arena", "Backbone", "Checkpoint", "Slot", "dtype_named", "load_backbone", "open_checkpoint", "reload"]
