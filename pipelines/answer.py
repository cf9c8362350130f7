"""What a pipeline gives back for one question: the text, where it came from, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.packing import KeptPassage, PackingReport
from retrievers.types import Hit

if TYPE_CHECKING:
    from frozenlm.recursion.candidates import Candidate


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with its sources.

    Attributes:
        question: as it was asked.
        text: the answer; None from a pipeline that only retrieves.
        score: summed log-probability of the generated tokens, nats.
        passages: every passage that was offered to the packer, best first.
        retrieved: the retriever's own list, before re-ranking.
        context: the passages that really stood in the LM's window, in the order in which the LM read them.
        packing: what was kept, dropped and cut, in tokens; None without passages.
        timings: seconds a question by stage (`retrieve`, `rerank`, `pack`, `read`): a batch's time divided by its size.
            Textual recursion has `first`, `candidates`, `second` and `before` (what the passes share) for `read`;
            neural recursion behind a plain pass has `plain` (what they share counts there) and `passes`.
        prompt: hash of the learned prompt that was used, None for zero-shot.
        module: name of the prompt that was used, in a pipeline that serves several.
        cut: who read only a part of an over-long input, in such a pipeline: `lm`, `encoder`; `demonstrations` where
            some found no room.
        passes: which passes of a recursion ran, in order: of the textual form `first` (the greedy first answer, where a
            second pass depends on it), `candidates` and `second`; of the neural form `pass_1`, `pass_2` and so on,
            behind `plain` (a greedy answer of one pass) where they depend on it.
        candidates: what textual recursion sampled, best first, each with its count and log-probability; None where
            nothing was sampled.
        candidates_dropped: how many of them found no room in the second pass.
        confidence: of the first answer, 0 to 1, where the second pass depends on it.
    """

    question: str
    text: str | None
    score: float | None = None
    passages: list[Hit] = field(default_factory=list)
    retrieved: list[Hit] = field(default_factory=list)
    context: list[KeptPassage] = field(default_factory=list)
    packing: PackingReport | None = None
    timings: dict[str, float] = field(default_factory=dict)
    prompt: str | None = None
    module: str | None = None
    cut: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    candidates: list[Candidate] | None = None
    candidates_dropped: int = 0
    confidence: float | None = None
