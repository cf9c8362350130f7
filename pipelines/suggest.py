"""The nearest known word to a mistyped one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def did_you_mean(word: str, known: Sequence[str], *, listed: bool = True) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, else (where `listed`) `; known: ...`, else nothing."""
    near = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.5 if len(word) <= 3 else 0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known and listed else ""
