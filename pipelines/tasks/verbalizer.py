"""A task's verbalizer: the word that stands for each of its labels, which the LM is asked to choose among."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frozenlm.prompting.labels import label_key, word_of, word_table

__all__ = ["Verbalizer", "label_key"]


class Verbalizer:
    """Label -> word.

    Attributes:
        words: label as text -> what the LM answers for it, in the given order.
        choices: the words alone.

    Raises:
        ConfigError: fewer than two labels, one label twice, a blank word, one word for two labels.
    """

    def __init__(self, words: Mapping[Any, str], *, task: str) -> None:
        self.task = task
        self._table = word_table(words, where=f"verbalizer of task {task!r}", synonyms=False)
        self.words: dict[str, str] = {label: word for label, (word,) in self._table.items()}

    @property
    def choices(self) -> tuple[str, ...]:
        """What the LM may answer."""
        return tuple(self.words.values())

    def word(self, label: Any, *, where: str) -> str:
        """The word for a label as it stands in the data.

        Raises:
            ConfigError: a label that has no word.
        """
        return word_of(self._table, label, where=where, whose=f"task {self.task!r}")
