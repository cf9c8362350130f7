"""Figures of cost in words: what they rest on, and large numbers short."""

from __future__ import annotations

from typing import Any

from rich.text import Text


def said(assumptions: dict[str, Any]) -> Text:
    """What figures rest on, as one line."""
    return Text("assumed: " + "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in assumptions.items()))


def short(number: int) -> str:
    """1234567 -> "1.235M"; four figures and a power of a thousand."""
    for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.4g}{letter}"
    return str(number) if number else "-"
