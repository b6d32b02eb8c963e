"""Choosing which entries of a backbone may change: a score per entry, a budget, a mask."""

from sparsehub.selection.rule import Rule, SelectionRequest, rule_named, rule_names, select

__all__ = ["Rule", "SelectionRequest", "rule_named", "rule_names", "select"]
