"""A verbalizer: the words that stand for a task's labels, which the LM is asked to choose among.

Labels in data are text, whole numbers or booleans; `true` and `"true"` are one label, as are `1` and `"1"`, since csv
files and YAML keys do not tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.errors import ConfigError


def label_key(value: Any, *, where: str) -> str:
    """A label as text.

    Raises:
        ConfigError: null, a fraction, a list: nothing that could be a label.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    got = "null" if value is None else f"{value!r:.60} ({type(value).__name__})"
    raise ConfigError(f"{where}: the label is {got}; expected text, a whole number or a boolean")


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
        self.words: dict[str, str] = {}
        where = f"verbalizer of task {task!r}"
        taken: dict[str, str] = {}
        for label, word in words.items():
            key = label_key(label, where=where)
            if key in self.words:
                raise ConfigError(f"{where}: label {key!r} is given twice; keep one")
            if not isinstance(word, str) or not word.strip():
                raise ConfigError(f"{where}: the word for {key!r} is {word!r}; expected text that is not blank")
            if word.strip() in taken:
                raise ConfigError(
                    f"{where}: labels {taken[word.strip()]!r} and {key!r} share the word {word!r}; words must differ"
                )
            taken[word.strip()] = key
            self.words[key] = word
        if len(self.words) < 2:
            raise ConfigError(f"{where}: {len(self.words)} labels; expected at least two to choose among")

    @property
    def choices(self) -> tuple[str, ...]:
        """What the LM may answer."""
        return tuple(self.words.values())

    def word(self, label: Any, *, where: str) -> str:
        """The word for a label as it stands in the data.

        Raises:
            ConfigError: a label that has no word.
        """
        key = label_key(label, where=where)
        if key not in self.words:
            known = ", ".join(map(repr, self.words))
            raise ConfigError(
                f"{where}: task {self.task!r} has no word for the label {key!r}; its verbalizer has {known}"
            )
        return self.words[key]
