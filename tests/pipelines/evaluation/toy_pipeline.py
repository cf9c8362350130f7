"""A small whole pipeline: a word-overlap retriever over fifty passages, the real packer, and a reader that takes the
word behind "by". Everything it does can be followed by eye."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.answer import Answer
from pipelines.evaluation.questions import Question
from pipelines.packing import pack
from retrievers.types import Hit

PASSAGES = [Hit(f"p{i:02d}", 0.0, f"thing {i} was made by Maker{i % 7} long ago", f"Thing {i}") for i in range(50)]


def encode(text: str) -> list[int]:
    """One id a word."""
    return [hash(word) % 1000 for word in text.split()]


def questions(n: int = 40) -> list[Question]:
    """Question i asks for thing i. Every fifth has a gold answer that no passage has."""
    return [
        Question(
            f"q{i}", f"who made thing {i} ?", ("Nobody",) if i % 5 == 4 else (f"Maker{i % 7}", "x y"), (f"p{i:02d}",)
        )
        for i in range(n)
    ]


@dataclass
class ToyPipeline:
    """Retrieves five, reverses them if `reverse`, packs two, reads the best kept passage."""

    delay: float = 0.0
    reverse: bool = False
    reads: bool = True
    retrieves: bool = True
    name: str = "toy"
    asked: list[str] = field(default_factory=list)

    def provenance(self) -> dict[str, Any]:
        return {"pipeline": self.name, "reverse": self.reverse}

    def gold_hits(self, asked: Sequence[Question]) -> list[list[Hit]]:
        by_id = {hit.passage_id: hit for hit in PASSAGES}
        return [[by_id[p] for p in question.gold_passages] for question in asked]

    def _retrieve(self, question: str) -> list[Hit]:
        words = set(question.split())
        scored = [
            Hit(hit.passage_id, float(len(words & set(hit.text.split()))), hit.text, hit.title) for hit in PASSAGES
        ]
        return sorted(scored, key=lambda hit: (-hit.score, hit.passage_id))[:5]

    def answer(self, texts: Sequence[str], hits: Sequence[Sequence[Hit]] | None = None) -> list[Answer]:
        answers = []
        for i, question in enumerate(texts):
            time.sleep(self.delay)
            self.asked.append(question)
            found = list(hits[i]) if hits is not None else self._retrieve(question) if self.retrieves else []
            ranked = [h.with_rerank_score(float(n)) for n, h in enumerate(found)][::-1] if self.reverse else found
            if not self.reads:
                answers.append(Answer(question, None, passages=ranked, retrieved=found, timings={"retrieve": 0.25}))
                continue
            # Opening none, question 3 + its words; a passage is "title : Thing i text : " and eight words.
            packed = pack(question, ranked, encode=encode, window=48, answer_reserve=8)
            best = min(packed.kept, key=lambda kept: kept.rank, default=None)
            text = "" if best is None else best.text.split(" by ")[1].split()[0]
            answers.append(
                Answer(
                    question,
                    text,
                    score=-1.5,
                    passages=ranked,
                    retrieved=found,
                    context=packed.kept,
                    packing=packed.report,
                    timings={"retrieve": 0.25, "read": 0.5},
                )
            )
        return answers
