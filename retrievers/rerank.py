"""Re-ranking by a cross-encoder, after "Passage Re-ranking with BERT" (Nogueira & Cho 2019, arXiv 1901.04085).

All pairs of a whole query batch are sorted by length and run in token-budget batches, with bf16 weights where the
device multiplies them natively. The head stays in fp32: bf16 has 128 steps between two powers of two, and good passages
would tie. Hits keep the retriever's score; ours stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retrievers.batching import token_budget_batches
from retrievers.compute import (
    pick_batch_tokens,
    pick_device,
    pick_dtype,
    require,
    spec_sha256,
    tokenizer_sha256,
    weights_sha256,
)
from retrievers.cross_encoder import load_cross_encoder, pair_logits, tokenize_pairs, window_of
from retrievers.encoders import titled
from retrievers.errors import RetrieverError
from retrievers.types import Hit


class CrossEncoderReranker:
    """Any sequence-classification model with one output (or two: second minus first) as a re-ranker.

    `truncated_passages` counts passages that were cut to the model's window since the re-ranker was made.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        max_length: int | None = None,
        retrieval_weight: float = 0.0,
    ) -> None:
        """Load the model.

        Args:
            model: folder or hub id.
            revision: hub revision.
            device: `auto`, `cpu`, `cuda[:n]`.
            dtype: of the weights below the head: `float32`, `bfloat16`, `auto`.
            batch_tokens: padded tokens a batch; None suits the device (`retrievers.compute.pick_batch_tokens`).
            max_length: tokens a pair; None is the model's own window, at most 512.
            retrieval_weight: the re-rank score is the logit plus this many times the retriever's score (our choice).
            A model
                trained on few questions then corrects the retriever's order instead of replacing it; it must have been
                trained with the same weight behind the same retriever.

        Raises:
            RetrieverError: the model cannot be loaded or was never trained to rank.
            IndexMismatchError: a folder of ours that is damaged.
        """
        loaded, self._tokenizer = load_cross_encoder(model, revision=revision)
        self._device = pick_device(device)
        self._window = window_of(loaded, self._tokenizer, max_length)
        self._weights = weights_sha256(loaded)
        torch_dtype = pick_dtype(dtype, self._device)
        self.precision = str(torch_dtype).removeprefix("torch.")
        self._model = loaded.requires_grad_(False).to(self._device, torch_dtype)
        _keep_head_in_float32(self._model)
        self._retrieval_weight = retrieval_weight
        self._batch_tokens = pick_batch_tokens(batch_tokens, self._device)
        self.truncated_passages = 0

    def rerank(self, queries: Sequence[str], hits: Sequence[Sequence[Hit]], k: int) -> list[list[Hit]]:
        """The k best of each query's hits by the model's logit, ties in the retriever's order.

        Raises:
            RetrieverError: lists that are not parallel, k below 1, or logits that are not finite.
        """
        check_parallel(queries, hits, k)
        pairs = [
            (query, titled(hit.title, hit.text)) for query, found in zip(queries, hits, strict=True) for hit in found
        ]
        scores = self.score([query for query, _ in pairs], [passage for _, passage in pairs])
        return ranked(hits, scores, k, retrieval_weight=self._retrieval_weight)

    def score(self, questions: Sequence[str], passages: Sequence[str]) -> npt.NDArray[np.float32]:
        """Raw logits [N] of parallel questions and passages.

        Raises:
            RetrieverError: a logit that is not finite.
        """
        torch = require("torch")
        pairs = tokenize_pairs(self._tokenizer, questions, passages, window=self._window)
        self.truncated_passages += pairs.truncated
        scores = np.zeros(len(questions), dtype=np.float32)
        with torch.inference_mode():
            for rows in token_budget_batches(pairs.lengths, batch_tokens=self._batch_tokens):
                features = [pairs.features[row] for row in rows]
                scores[rows] = pair_logits(self._model, self._tokenizer, features, self._device).cpu().numpy()
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise RetrieverError(
                f"the cross-encoder gave {scores[bad]} for the question {questions[bad][:80]!r}; expected a finite "
                "logit. Check its weights, or run it with dtype: float32."
            )
        return scores

    def fingerprint(self) -> str:
        """SHA-256 over weights, tokenizer, window and precision."""
        tokenizer = tokenizer_sha256(self._tokenizer)
        spec = {"weights": self._weights, "tokenizer": tokenizer, "window": self._window, "precision": self.precision}
        if self._retrieval_weight:
            spec["retrieval_weight"] = self._retrieval_weight
        return f"cross-encoder:{spec_sha256(spec)}"

    def close(self) -> None:
        """Nothing is held open."""


def check_parallel(queries: Sequence[str], hits: Sequence[Sequence[Hit]], k: int) -> None:
    """Raises:
    RetrieverError: `hits` is not parallel to `queries`, or k is below 1.
    """
    if len(queries) != len(hits):
        raise RetrieverError(f"got {len(queries)} queries and {len(hits)} lists of hits; expected one list a query.")
    if k < 1:
        raise RetrieverError(f"k is {k}; expected at least 1.")


def ranked(
    hits: Sequence[Sequence[Hit]],
    scores: Sequence[float] | npt.NDArray[np.float32],
    k: int,
    *,
    retrieval_weight: float = 0.0,
) -> list[list[Hit]]:
    """Each list of hits by its scores (flat, in the hits' order), best first, ties in the order given, k at most.

    Args:
        retrieval_weight: so many times the retriever's score is added to each score.
    """
    results, start = [], 0
    for found in hits:
        own = [
            float(score) + (retrieval_weight * hit.score if retrieval_weight else 0.0)
            for score, hit in zip(scores[start : start + len(found)], found, strict=True)
        ]
        order = sorted(range(len(found)), key=lambda row: -own[row])[:k]
        results.append([found[row].with_rerank_score(own[row]) for row in order])
        start += len(found)
    return results


def _keep_head_in_float32(model: object) -> None:
    head = getattr(model, "classifier", None) or getattr(model, "score", None)
    if head is not None:
        head.float()
        head.register_forward_pre_hook(lambda _, args: tuple(argument.float() for argument in args))
