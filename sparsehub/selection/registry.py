"""The names of selection rules and of how entries compete, without torch: the command line's help lists them."""

from __future__ import annotations

# Lazily imported: name -> module with `needs`, `defaults`, `options` and `scores`.
RULE_MODULES = {
    "sam": "sparsehub.selection.sam",
    "sam-released": "sparsehub.selection.sam_released",
    "sam-hessian": "sparsehub.selection.sam_hessian",
    "fisher": "sparsehub.selection.fisher",
    "child-tuning": "sparsehub.selection.child_tuning",
    "snip": "sparsehub.selection.snip",
    "random": "sparsehub.selection.random",
    "magnitude": "sparsehub.selection.magnitude",
    "lift": "sparsehub.selection.lift",
    "bitfit": "sparsehub.selection.bitfit",
}
GRANULARITIES = ("global", "kind", "tensor", "row")


def rule_names() -> list[str]:
    return sorted(RULE_MODULES)
