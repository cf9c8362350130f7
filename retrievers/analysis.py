"""Text to terms: one object for the index and for the questions, stored with the index.

Why an object: a question analysed otherwise than the passages finds less, in silence. The index keeps its analyzer's
spec, opens with exactly that analyzer, and refuses another one.

The defaults are Lucene's English analysis, as far as it matters: lower case, possessive 's cut off, Lucene's 33
stopwords, Porter's stemmer (Porter 1980), which is what the published BM25 figures of DPR, BEIR and Anserini stand on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from retrievers.errors import IndexMismatchError, RetrieverError

# A word may hold apostrophes and dots between letters and digits ("o'neil", "u.s", "3.5"), as in Unicode's word rules.
DEFAULT_PATTERN = r"\w+(?:['’.]\w+)*"

LUCENE_STOPWORDS = frozenset(
    {"a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of"}
    | {
        "on",
        "or",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "will",
        "with",
    }
)


@dataclass(frozen=True)
class Analyzer:
    """How a text becomes terms: lower case, tokens by `pattern`, possessive 's off, stopwords out, stemmed.

    Args:
        lowercase: fold case before anything else.
        stemmer: "porter" (1980), "english" (Snowball's second version), any other PyStemmer algorithm, or None.
        stopwords: "lucene" (33 English words), "none", or the words themselves; compared before stemming.
        pattern: regular expression of a token; a group must not capture.
        possessive: cut off a closing 's, as Lucene's English analysis does.

    Raises:
        RetrieverError: an unknown stemmer or stopword list, or a pattern that is no regular expression.
    """

    lowercase: bool = True
    stemmer: str | None = "porter"
    stopwords: Literal["lucene", "none"] | tuple[str, ...] = "lucene"
    pattern: str = DEFAULT_PATTERN
    possessive: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stopwords, str):
            if self.stopwords not in ("lucene", "none"):
                raise RetrieverError(
                    f"stopwords is {self.stopwords!r}; expected 'lucene', 'none' or the words themselves"
                )
        else:
            object.__setattr__(self, "stopwords", tuple(self.stopwords))
        if self.stemmer is not None:
            import Stemmer

            if self.stemmer not in Stemmer.algorithms():
                raise RetrieverError(f"stemmer is {self.stemmer!r}; expected None or one of {Stemmer.algorithms()}")
        try:
            if re.compile(self.pattern).groups:
                raise RetrieverError(f"pattern {self.pattern!r} captures a group; write (?:...) in place of (...)")
        except re.error as error:
            raise RetrieverError(f"pattern {self.pattern!r} is no regular expression: {error}") from error

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that the terms depend on, JSON-serialisable, stopwords written out."""
        return {
            "lowercase": self.lowercase,
            "stemmer": self.stemmer,
            "stopwords": sorted(self._stopwords),
            "pattern": self.pattern,
            "possessive": self.possessive,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Analyzer:
        """The analyzer that an index was built with.

        Raises:
            IndexMismatchError: the spec has fields that this release does not know.
        """
        try:
            return cls(**{**spec, "stopwords": tuple(spec["stopwords"])})
        except (TypeError, KeyError) as error:
            raise IndexMismatchError(
                f"the index's analyzer {dict(spec)!r} cannot be made: {error}; build again"
            ) from error

    @cached_property
    def _stopwords(self) -> frozenset[str]:
        if isinstance(self.stopwords, str):
            return LUCENE_STOPWORDS if self.stopwords == "lucene" else frozenset()
        return frozenset(self.stopwords)

    @cached_property
    def _find(self) -> Callable[[str], list[str]]:
        return re.compile(self.pattern).findall

    @cached_property
    def _stem(self) -> Callable[[str], str]:
        if self.stemmer is None:
            return str
        import Stemmer

        # Its own cache is not safe from several threads; ours (TermIds) makes it needless.
        return Stemmer.Stemmer(self.stemmer, 0).stemWord

    def tokens(self, text: str) -> list[str]:
        """The raw tokens of a text: cased as wanted, before possessive, stopwords and stemming."""
        return self._find(text.lower() if self.lowercase else text)

    def term(self, token: str) -> str | None:
        """The term that one raw token is indexed under, or None for a stopword."""
        if self.possessive and token[-2:] in ("'s", "’s", "'S", "’S"):
            token = token[:-2]
        if not token or token in self._stopwords:
            return None
        return self._stem(token)

    def terms(self, text: str) -> list[str]:
        """The terms of a text in order, repetitions kept."""
        return [term for token in self.tokens(text) if (term := self.term(token)) is not None]


class TermIds:
    """Texts to numbers of terms, with a bounded memo from raw token to number.

    Args:
        analyzer: what makes terms.
        vocabulary: term -> number; grown in place where `grow`.
        grow: give a new number to an unknown term (indexing) instead of leaving it out (questions).
    """

    def __init__(self, analyzer: Analyzer, vocabulary: dict[str, int], *, grow: bool, memo: int = 2_000_000) -> None:
        self.analyzer = analyzer
        self.vocabulary = vocabulary
        self._grow = grow
        self._memo: dict[str, int] = {}
        self._memo_size = memo

    def __call__(self, text: str) -> list[int]:
        """The numbers of the text's terms, in order, repetitions kept."""
        memo = self._memo
        tokens = self.analyzer.tokens(text)
        try:
            numbers = [memo[token] for token in tokens]
        except KeyError:
            if len(memo) > self._memo_size:
                self._memo = memo = {}
            for token in tokens:
                if token not in memo:
                    memo[token] = self._number(token)
            numbers = [memo[token] for token in tokens]
        return [number for number in numbers if number >= 0]

    def _number(self, token: str) -> int:
        term = self.analyzer.term(token)
        if term is None:
            return -1
        if self._grow:
            return self.vocabulary.setdefault(term, len(self.vocabulary))
        return self.vocabulary.get(term, -1)


def check_queries(queries: Sequence[str], k: int, *, max_characters: int) -> list[str]:
    """The queries as a list, after refusing what no retriever should be asked.

    Raises:
        RetrieverError: one string in place of a list, something that is not a string, an over-long query, or k below 1.
    """
    if isinstance(queries, str):
        raise RetrieverError("retrieve takes a list of questions, got one string; write retrieve([question], k)")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise RetrieverError(f"k is {k!r}, expected a whole number of at least 1")
    for number, query in enumerate(queries):
        if not isinstance(query, str):
            raise RetrieverError(f"question {number} is a {type(query).__name__}, expected a string")
        if len(query) > max_characters:
            raise RetrieverError(
                f"question {number} has {len(query):,} characters, at most {max_characters:,} are allowed; shorten it"
            )
    return list(queries)
