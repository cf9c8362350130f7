"""What training a cross-encoder needs, short of the loop: mined examples, the loss, the module.

One positive and several hard negatives a question, the negatives from the same retriever's list that the re-ranker will
see when it works, and a softmax over the list ("listwise", as in RankT5, arXiv 2210.10634, and in "Rethink Training of
BERT Rerankers", arXiv 2101.08751). Our choice throughout: the AI21 report names neither re-ranker nor loss. The loop is
`frozenlm.training.fit`; `pipelines` joins the two.

Beware: a retriever trained on these very questions finds better passages for them than for new ones; keep a dev split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievers.batching import token_budget_batches
from retrievers.compute import pick_batch_tokens, pick_device
from retrievers.cross_encoder import load_cross_encoder, pair_logits, save_cross_encoder, tokenize_pairs, window_of
from retrievers.encoders import titled
from retrievers.errors import RetrieverError
from retrievers.manifest import Manifest
from retrievers.metrics import has_answer
from retrievers.types import Hit, Passage

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RankingQuestion:
    """A question with what tells a good passage from a bad one: answers, gold passage ids, or both."""

    id: str
    text: str
    answers: tuple[str, ...] = ()
    gold_ids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RankingExample:
    """One question, one good passage, at least one bad passage.

    Attributes:
        scores: the retriever's scores of positive and negatives; a positive that the retriever missed has the lowest
        of its list.
    """

    question: str
    positive: str
    negatives: tuple[str, ...]
    scores: tuple[float, ...] = field(default=(), compare=False)

    @property
    def passages(self) -> tuple[str, ...]:
        """The positive first, then the negatives."""
        return (self.positive, *self.negatives)


@dataclass(frozen=True)
class Mined:
    """Examples, and what became of the questions.

    Attributes:
        examples: in the order of the questions.
        questions: looked at.
        gold_positives: examples whose positive is a gold passage; the others' was found by its answer.
        without_positive: questions dropped, since no gold passage and no retrieved passage with the answer was found.
        without_negative: questions dropped, since every retrieved passage was good.
        few_negatives: examples with fewer negatives than asked for (kept).
    """

    examples: tuple[RankingExample, ...]
    questions: int
    gold_positives: int
    without_positive: int
    without_negative: int
    few_negatives: int

    def __str__(self) -> str:
        return (
            f"{len(self.examples)} examples from {self.questions} questions ({self.gold_positives} with a gold "
            f"passage; {self.without_positive} without positive, {self.without_negative} without negative; "
            f"{self.few_negatives} with fewer negatives than asked for)"
        )


def mine_negatives(
    questions: Sequence[RankingQuestion],
    hits: Sequence[Sequence[Hit]],
    *,
    negatives: int = 7,
    depth: int = 100,
    passage: Callable[[str], Passage | None] | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> Mined:
    """One positive and hard negatives a question.

    Positive: the gold passage that the retriever ranked highest, else a gold passage from the corpus, else the first
    retrieved passage with an answer (DPR's has_answer). Negatives: drawn from the retriever's first `depth`, neither
    gold nor with an answer; the draw depends on the seed and the question alone.

    Args:
        questions: with answers or gold ids.
        hits: the retriever's, parallel to `questions`, from the retriever that the re-ranker will stand behind.
        negatives: a question, at most.
        depth: how far down negatives are taken.
        balanced: draw negatives from the retrieved passages that are gold for another question, where there are any. A
            small training set otherwise teaches which passages tend to be gold, and not what answers the question.
        passage: finds a gold passage by id (`PassageStore.get`), for those that the retriever missed.
        seed: of the draw.

    Raises:
        RetrieverError: lists that are not parallel, a bad count, or a question with neither answers nor gold ids.
    """
    if len(questions) != len(hits):
        raise RetrieverError(
            f"got {len(questions)} questions and {len(hits)} lists of hits; expected one list a question."
        )
    if negatives < 1 or depth < 1:
        raise RetrieverError(f"negatives is {negatives}, depth {depth}; expected both to be at least 1.")
    golden = {passage_id for question in questions for passage_id in question.gold_ids}
    examples: list[RankingExample] = []
    counts = {"gold_positives": 0, "without_positive": 0, "without_negative": 0, "few_negatives": 0}
    for question, found in zip(questions, hits, strict=True):
        if not question.answers and not question.gold_ids:
            raise RetrieverError(
                f"question {question.id!r} has neither answers nor gold passage ids; it teaches nothing."
            )
        good = [_is_good(question, hit) for hit in found]
        lowest = min((h.score for h in found), default=0.0)
        gold = _gold(question, found, passage, lowest)
        positive = gold or next(
            ((titled(h.title, h.text), h.score) for h, ok in zip(found, good, strict=True) if ok), None
        )
        wrong = [h for h, ok in zip(found[:depth], good, strict=False) if not ok]
        if balanced:
            wrong = [h for h in wrong if h.passage_id in golden] or wrong
        bad = [(titled(h.title, h.text), h.score) for h in wrong]
        if positive is None or not bad:
            counts["without_positive" if positive is None else "without_negative"] += 1
            continue
        drawn = random.Random(f"{seed}:{question.id}").sample(bad, min(negatives, len(bad)))
        counts["gold_positives"] += gold is not None
        counts["few_negatives"] += len(drawn) < negatives
        texts, scores = zip(positive, *drawn, strict=True)
        examples.append(RankingExample(question.text, texts[0], texts[1:], scores))
    return Mined(tuple(examples), len(questions), **counts)


def listwise_loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of -log softmax at column 0, the positive's.

    Args:
        logits: [B, 1 + N], fp32 inside; -inf where a question has fewer negatives.
    """
    import torch

    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return torch.nn.functional.cross_entropy(logits.float(), target)


class CrossEncoderTrainer:
    """A cross-encoder in training: `module` is what an optimizer moves, `loss` what it moves it by.

    Any encoder folder or hub id will do; one without a ranking head gets a new one, drawn with `seed`.
    """

    def __init__(
        self,
        model: str,
        *,
        seed: int = 0,
        max_length: int | None = None,
        retrieval_weight: float = 0.0,
        device: str = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        """Load the model in fp32, ready to train.

        Args:
            model: folder or hub id.
            seed: of a new head.
            max_length: tokens a pair; None is the model's own window, at most 512.
            retrieval_weight: the model learns what to add to this many times the retriever's score (our choice; see
                `CrossEncoderReranker`).
            device: `auto`, `cpu`, `cuda[:n]`.
            batch_tokens: padded tokens a batch in `evaluate`; None suits the device.

        Raises:
            RetrieverError: the model cannot be loaded.
        """
        self.module, self.tokenizer = load_cross_encoder(model, new_head_seed=seed)
        self.window = window_of(self.module, self.tokenizer, max_length)
        place = pick_device(device)
        self.module.to(place)
        self._base = model
        self._retrieval_weight = retrieval_weight
        self._batch_tokens = pick_batch_tokens(batch_tokens, place)

    def loss(self, examples: Sequence[RankingExample]) -> torch.Tensor:
        """The listwise loss of a batch, differentiable.

        Raises:
            RetrieverError: an empty batch.
        """
        if not examples:
            raise RetrieverError("got an empty batch of ranking examples; expected at least one.")
        return listwise_loss(self.logits(examples))

    def logits(self, examples: Sequence[RankingExample]) -> torch.Tensor:
        """[B, 1 + N], the positive first; shorter lists are filled with -inf."""
        import torch

        features = self.collate(examples)
        scores = pair_logits(self.module, self.tokenizer, features, next(self.module.parameters()).device)
        scores = scores + self._retrieved(examples).to(scores.device)
        pieces = scores.split([len(example.passages) for example in examples])
        return torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True, padding_value=-torch.inf)

    def _retrieved(self, examples: Sequence[RankingExample]) -> torch.Tensor:
        """What the retriever's scores add to the logits of all pairs, [sum of list lengths]."""
        import torch

        if self._retrieval_weight and any(len(e.scores) != len(e.passages) for e in examples):
            raise RetrieverError(
                "retrieval_weight needs the retriever's score of every passage; mine the examples anew."
            )
        if not self._retrieval_weight:
            return torch.zeros(sum(len(example.passages) for example in examples))
        return self._retrieval_weight * torch.tensor([score for example in examples for score in example.scores])

    def collate(self, examples: Sequence[RankingExample]) -> list[dict[str, list[int]]]:
        """All pairs of a batch, tokenised: each example's positive, then its negatives."""
        pairs = [(example.question, passage) for example in examples for passage in example.passages]
        questions, passages = [question for question, _ in pairs], [passage for _, passage in pairs]
        return tokenize_pairs(self.tokenizer, questions, passages, window=self.window).features

    def evaluate(self, examples: Sequence[RankingExample]) -> float:
        """Mean reciprocal rank of the positives among their negatives, ties counted against them. No gradient.

        Raises:
            RetrieverError: no examples.
        """
        if not examples:
            raise RetrieverError("got no ranking examples to evaluate on; expected at least one.")
        import torch

        features = self.collate(examples)
        device = next(self.module.parameters()).device
        scores = torch.zeros(len(features))
        training = self.module.training
        self.module.eval()
        with torch.no_grad():
            for rows in token_budget_batches([len(f["input_ids"]) for f in features], batch_tokens=self._batch_tokens):
                scores[rows] = pair_logits(self.module, self.tokenizer, [features[r] for r in rows], device).cpu()
        self.module.train(training)
        scores += self._retrieved(examples)
        total, start = 0.0, 0
        for example in examples:
            own = scores[start : start + len(example.passages)]
            total += 1 / (1 + int((own[1:] >= own[0]).sum()))
            start += len(own)
        return total / len(examples)

    def save(self, folder: str | Path, card: Mapping[str, Any], *, overwrite: bool = False) -> Manifest:
        """Write the model as a folder that `CrossEncoderReranker` opens; see `save_cross_encoder`."""
        return save_cross_encoder(
            self.module,
            self.tokenizer,
            folder,
            {"base": self._base, "retrieval_weight": self._retrieval_weight, **card},
            overwrite=overwrite,
        )


def _is_good(question: RankingQuestion, hit: Hit) -> bool:
    """Gold, or with the answer in its text: never a negative."""
    return hit.passage_id in question.gold_ids or (
        bool(question.answers) and has_answer(hit.text, list(question.answers))
    )


def _gold(
    question: RankingQuestion, found: Sequence[Hit], passage: Callable[[str], Passage | None] | None, lowest: float
) -> tuple[str, float] | None:
    for hit in found:
        if hit.passage_id in question.gold_ids:
            return titled(hit.title, hit.text), hit.score
    for passage_id in sorted(question.gold_ids) if passage is not None else ():
        gold = passage(passage_id) if passage is not None else None
        if gold is not None:
            return titled(gold.title, gold.text), lowest
    return None
