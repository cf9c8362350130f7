"""Re-ranking by a language model's likelihood of the question: UPR (Sachan et al. 2022, arXiv 2204.07496).

A passage is as good as the probability log p(question | passage) that the frozen LM gives to the question after it has
read the passage and an instruction. Nothing is trained. The LM is reached through the `TextScorer` protocol alone, so
this package imports none.

Paper: the instruction, and the mean over the question's tokens. Our choice: the prompt's exact layout (UPR's is for
T0), and the plain sum by default; within one question sum and mean rank alike.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence

from retrievers.compute import spec_sha256
from retrievers.encoders import titled
from retrievers.errors import RetrieverError
from retrievers.rerank import check_parallel, ranked
from retrievers.types import Hit, TextScorer

PROMPT = "Passage: {passage}\nPlease write a question based on this passage.\nQuestion:"
CONTINUATION = " {question}"


class LikelihoodReranker:
    """Hits by log p(question | passage) under a language model.

    `truncated_passages` counts passages that were cut to the window since the re-ranker was made.
    """

    def __init__(
        self,
        scorer: TextScorer,
        *,
        prompt: str = PROMPT,
        continuation: str = CONTINUATION,
        count_tokens: Callable[[str], int] | None = None,
        fits: Callable[[str, str], bool] | None = None,
        max_characters: int | None = None,
        retrieval_weight: float = 0.0,
    ) -> None:
        """Set up the prompt and the window.

        Args:
            scorer: gives log p(continuation | prompt) in nats; a `fingerprint` of it, where there is one, enters ours.
            prompt: with the field `{passage}`, which gets title and text.
            continuation: with the field `{question}`.
            count_tokens: tokens of a continuation; given, the score is the mean over tokens, else the sum.
            fits: whether (prompt, continuation) fits the LM's window; it must stay true when the passage gets shorter.
            max_characters: of a passage's text, a cheaper limit that needs no tokenizer.
            retrieval_weight: the re-rank score is the log-probability plus this many times the retriever's score (our
                choice); tuned on dev questions.

        Raises:
            RetrieverError: a template with other fields, or a limit below 1.
        """
        _check_fields("prompt", prompt, field="passage")
        _check_fields("continuation", continuation, field="question")
        if max_characters is not None and max_characters < 1:
            raise RetrieverError(f"max_characters is {max_characters}; expected at least 1.")
        self._scorer = scorer
        self._prompt = prompt
        self._continuation = continuation
        self._count_tokens = count_tokens
        self._fits = fits
        self._max_characters = max_characters
        self._retrieval_weight = retrieval_weight
        self.truncated_passages = 0

    def rerank(self, queries: Sequence[str], hits: Sequence[Sequence[Hit]], k: int) -> list[list[Hit]]:
        """The k best of each query's hits, ties in the retriever's order.

        Raises:
            RetrieverError: lists that are not parallel, k below 1, a question that does not fit even without a passage,
                or a score that is not finite.
        """
        check_parallel(queries, hits, k)
        prompts, continuations = [], []
        for query, found in zip(queries, hits, strict=True):
            continuation = self._continuation.format(question=query)
            for hit in found:
                prompts.append(self._fitting_prompt(hit, continuation))
                continuations.append(continuation)
        scores = list(self._scorer.score_texts(prompts, continuations)) if prompts else []
        if len(scores) != len(prompts):
            raise RetrieverError(f"the scorer gave {len(scores)} scores for {len(prompts)} pairs; expected one a pair.")
        for score, continuation in zip(scores, continuations, strict=True):
            if not math.isfinite(score):
                raise RetrieverError(
                    f"the scorer gave {score} for {continuation[:80]!r}; expected a finite log-probability."
                )
        if self._count_tokens is not None:
            counts = {text: max(1, self._count_tokens(text)) for text in set(continuations)}
            scores = [score / counts[text] for score, text in zip(scores, continuations, strict=True)]
        return ranked(hits, scores, k, retrieval_weight=self._retrieval_weight)

    def fingerprint(self) -> str:
        """SHA-256 over the scorer's fingerprint, the templates and the limits."""
        own = getattr(self._scorer, "fingerprint", type(self._scorer).__qualname__)
        spec = {
            "scorer": own() if callable(own) else own,
            "prompt": self._prompt,
            "continuation": self._continuation,
            "per_token": self._count_tokens is not None,
            "max_characters": self._max_characters,
            "retrieval_weight": self._retrieval_weight,
        }
        return f"likelihood:{spec_sha256(spec)}"

    def close(self) -> None:
        """Nothing is held open; the scorer is the caller's."""

    def _fitting_prompt(self, hit: Hit, continuation: str) -> str:
        """The prompt with as many whole words from the passage's beginning as the limits allow."""
        text = hit.text
        if self._max_characters is not None and len(text) > self._max_characters:
            space = text.rfind(" ", 0, self._max_characters + 1)
            text = text[: space if space > 0 else self._max_characters]
        if self._fits is not None and not self._fits(self._filled(hit.title, text), continuation):
            text = self._longest_fit(hit, text.split(" "), continuation)
        self.truncated_passages += text != hit.text
        return self._filled(hit.title, text)

    def _longest_fit(self, hit: Hit, words: list[str], continuation: str) -> str:
        """Binary search: `low` words fit, `high` words do not."""
        fits, low, high = self._fits, 0, len(words)
        if fits is None or not fits(self._filled(hit.title, ""), continuation):
            raise RetrieverError(
                f"the question {continuation[:80]!r} does not fit the LM's window even beside an empty passage; "
                "shorten the question or the prompt, or use an LM with a longer window."
            )
        while high - low > 1:
            middle = (low + high) // 2
            if fits(self._filled(hit.title, " ".join(words[:middle])), continuation):
                low = middle
            else:
                high = middle
        return " ".join(words[:low])

    def _filled(self, title: str, text: str) -> str:
        return self._prompt.format(passage=titled(title, text))


def _check_fields(name: str, template: str, *, field: str) -> None:
    try:
        fields = {found for _, found, _, _ in string.Formatter().parse(template) if found is not None}
    except ValueError as error:
        raise RetrieverError(f"the {name} template {template!r} cannot be read: {error}.") from error
    if fields != {field}:
        raise RetrieverError(f"the {name} template has the fields {sorted(fields)}; expected just {{{field}}}.")
