"""Labels as data have them, and the words that stand for them. Needs no torch.

Labels are text, whole numbers or booleans; `true` and `"true"` are one label, as are `1` and `"1"`, since csv files and
YAML keys do not tell them apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from frozenlm.errors import ConfigError


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


def word_table(words: Mapping[Any, Any], *, where: str, synonyms: bool) -> dict[str, tuple[str, ...]]:
    """Label as text -> its words, in the given order.

    where: what messages begin with
    synonyms: whether a label may have a list of words

    Raises:
        ConfigError: no mapping, fewer than two labels, one label twice, a label without a word, a blank word, one word
            twice.
    """
    if not isinstance(words, Mapping):
        raise ConfigError(f"{where}: got {type(words).__name__}; expected a mapping of labels to words")
    table: dict[str, tuple[str, ...]] = {}
    taken: dict[str, str] = {}
    for label, given in words.items():
        key = label_key(label, where=where)
        if key in table:
            raise ConfigError(f"{where}: label {key!r} is given twice; keep one")
        several = synonyms and isinstance(given, Sequence) and not isinstance(given, str)
        table[key] = tuple(given) if several else (given,)
        if not table[key]:
            raise ConfigError(f"{where}: the label {key!r} has no words; give it at least one")
        for word in table[key]:
            if not isinstance(word, str) or not word.strip():
                raise ConfigError(f"{where}: the word for {key!r} is {word!r}; expected text that is not blank")
            if word.strip() in taken:
                raise ConfigError(
                    f"{where}: labels {taken[word.strip()]!r} and {key!r} share the word {word!r}; words must differ"
                )
            taken[word.strip()] = key
    if len(table) < 2:
        raise ConfigError(f"{where}: {len(table)} labels; expected at least two to choose among")
    return table


def word_of(table: Mapping[str, tuple[str, ...]], label: Any, *, where: str, whose: str) -> str:
    """The first word for a label as it stands in the data. whose: what messages call the owner of the words.

    Raises:
        ConfigError: a label that has no word.
    """
    key = label_key(label, where=where)
    if key not in table:
        known = ", ".join(map(repr, table))
        raise ConfigError(f"{where}: {whose} has no word for the label {key!r}; its verbalizer has {known}")
    return table[key][0]
