"""Reading by textual recursion (arXiv 2204.10019, section 4.1): the frozen LM samples candidates, then answers with
them before its eyes; or one of the two baselines answers, which choose among the candidates.

The passes share what stands before the question, passages included. Both have learned prompts of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from frozenlm.recursion.candidates import Candidate, Candidates, best_by_score, majority
from frozenlm.recursion.textual import Asked, Recursed, TextualRecursion
from frozenlm.rows import plan_batches
from pipelines import build_recursion
from pipelines.components import Components, prompt_sha256
from pipelines.packing import Packed
from pipelines.reading import Reading
from pipelines.surface import clean

if TYPE_CHECKING:
    from pipelines.config import TextualRecursion as TextualConfig

CHOICES: dict[str, Callable[[Sequence[Candidate]], Candidate | None]] = {
    "majority": majority,
    "best_score": best_by_score,
}


def asked(question: str, packed: Packed) -> Asked:
    """A packed window as both passes need it."""
    before = (*packed.opening_ids, *(i for ids in packed.passage_ids for i in ids))
    return Asked(question, tuple(packed.question_ids), before)


def sampled(recursion: TextualRecursion, rows: Sequence[Asked]) -> list[Candidates]:
    """Pass 1 alone over any number of questions, in batches that share what they read."""
    share = max(1, recursion.batch_tokens // recursion.sampling.n)
    found: dict[int, Candidates] = {}
    for part in plan_batches([len(one.before) + len(one.ids) for one in rows], batch_tokens=share):
        some = [rows[i] for i in part]
        found.update(zip(part, recursion.candidates(some, recursion.read_before(some)), strict=True))
    return [found[number] for number in range(len(rows))]


class TextualReader:
    """`pipelines.reading.Reader` of kind `textual_recursion`.

    Raises:
        CheckpointError: a prompt is not trained yet, or a threshold not tuned, and the config needs it.
    """

    def __init__(self, parts: Components) -> None:
        self.config: TextualConfig = parts.config
        two = self.config.answer_by == "second_pass"
        first, second = parts.prompt, parts.second_prompt if two else None
        self._hashes = [prompt_sha256(first), prompt_sha256(second)]
        self.when = build_recursion.when(self.config, parts.lm, {"prompts": self._hashes})
        self.recursion: TextualRecursion = build_recursion.textual(
            self.config, parts.lm, first=first, second=second, when=self.when
        )

    def read(self, questions: Sequence[str], packed: Sequence[Packed]) -> list[Reading]:
        """See `Reader`."""
        rows = [asked(*pair) for pair in zip(questions, packed, strict=True)]
        if self.config.answer_by == "second_pass":
            found = [self._of_passes(one) for one in self.recursion.answer(rows)]
        else:
            found = self._chosen(rows)
        return [self._cleaned(one, window) for one, window in zip(found, packed, strict=True)]

    def provenance(self) -> dict[str, Any]:
        """See `Reader`."""
        first, second = self._hashes
        return {"prompt_sha256": first, "second_prompt_sha256": second, "when_threshold": self.when.threshold}

    def _of_passes(self, one: Recursed) -> Reading:
        return Reading(
            one.text,
            one.logprob,
            prompt=self._hashes["second" in one.passes],
            passes=one.passes,
            candidates=list(one.candidates.ranked) if one.candidates is not None else None,
            candidates_dropped=one.second.dropped if one.second is not None else 0,
            confidence=one.confidence,
            timings=one.timings,
        )

    def _chosen(self, rows: Sequence[Asked]) -> list[Reading]:
        """The answer that the config's rule takes from the candidates; an empty one where there is none."""
        choose = CHOICES[self.config.answer_by]
        found: list[Reading] = []
        start = time.perf_counter()
        for drawn in sampled(self.recursion, rows):
            best = choose(drawn.ranked)
            text, score = (best.text, best.logprob) if best is not None else ("", None)
            found.append(Reading(text, score, self._hashes[0], ("candidates",), list(drawn.ranked)))
        seconds = (time.perf_counter() - start) / max(1, len(rows))
        return [replace(one, timings={"candidates": seconds}) for one in found]

    def _cleaned(self, one: Reading, packed: Packed) -> Reading:
        """With the surface that readers expect, the candidates' too."""
        texts, block = [kept.text for kept in packed.kept], self.config.surface

        def cleaned(text: str) -> str:
            return clean(text, texts, join_digits=block.join_digits, as_in_passage=block.as_in_passage)

        shown = None
        if one.candidates is not None:
            shown = [replace(candidate, text=cleaned(candidate.text)) for candidate in one.candidates]
        return replace(one, text=cleaned(one.text), candidates=shown)
