"""Choose which entries of a backbone may change: a rule scores every entry, and the budget's best make the mask."""

from typing import TYPE_CHECKING

from sparsehub.lazy import lazy_names

if TYPE_CHECKING:
    from sparsehub.selection.layer_report import LayerSelection, by_layer
    from sparsehub.selection.registry import rule_names
    from sparsehub.selection.rule import Rule, SelectionRequest, rule_named, select
    from sparsehub.selection.scope import in_scope

__all__ = ["LayerSelection", "Rule", "SelectionRequest", "by_layer", "in_scope", "rule_named", "rule_names", "select"]

_HOMES = {
    "rule_names": "registry",
    **dict.fromkeys(["LayerSelection", "by_layer"], "layer_report"),  # these import torch
    **dict.fromkeys(["Rule", "SelectionRequest", "rule_named", "select"], "rule"),
    "in_scope": "scope",
}
__getattr__ = lazy_names(__name__, _HOMES)
