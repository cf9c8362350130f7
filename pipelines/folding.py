"""Text as a lower-casing, accent-stripping tokenizer sees it, with the way back to the characters that were written.

Two parts of the roof need it: delimiters hidden behind accents or invisible characters are found in the folded text
(`delimiters.py`), and an answer in lower-cased pieces is given its spelling in the passage (`surface.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_INVISIBLE = {"Mn", "Mc", "Me", "Cf"}


def fold(text: str) -> tuple[str, Sequence[int]]:
    """Compatibility-decomposed, case-folded, without marks and format characters.

    Returns:
        the folded text, and for each of its characters the index of the character of `text` that it came from.
    """
    if text.isascii():
        return text.lower(), range(len(text))
    folded: list[str] = []
    origin: list[int] = []
    for i, character in enumerate(text):
        if character.isascii():
            folded.append(character.lower())
            origin.append(i)
            continue
        for part in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold()):
            if unicodedata.category(part) not in _INVISIBLE:
                folded.append(part)
                origin.append(i)
    return "".join(folded), origin
