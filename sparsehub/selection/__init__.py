"""Choosing which entries of a backbone may change: a score per entry, a budget, a mask."""

from sparsehub.selection.layer_report import LayerSelection, by_layer
from sparsehub.selection.rule import Rule, SelectionRequest, rule_named, rule_names, select
from sparsehub.selection.scope import in_scope

__all__ = ["LayerSelection", "Rule", "SelectionRequest", "by_layer", "in_scope", "rule_named", "rule_names", "select"]
