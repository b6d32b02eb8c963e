"""Numbers for people: how every card, report, table and terminal line writes a size or a share."""

from __future__ import annotations


def size_text(count: float) -> str:
    """A number of bytes: 508180 -> 496.3 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def percent(share: float) -> str:
    """A share in two or three digits, 0.0051 -> 0.51%; a share above zero is never written as zero."""
    value = 100 * share
    if 0 < value < 0.005:
        return "<0.01%"
    return f"{value:.0f}%" if value >= 10 else f"{value:.1f}%" if value >= 1 else f"{value:.2f}%"
