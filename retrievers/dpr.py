"""Dense Passage Retrieval (Karpukhin et al. 2020, arXiv 2004.04906) and Spider (Ram et al. 2021, arXiv 2112.07708).

Both are BERT encoders whose vector is the hidden state at [CLS] (after a projection where the checkpoint has one),
compared by dot product, not normalised. DPR has one encoder for questions and one for passages, Spider one for both.
Facts of the released code that change results, each pinned by a test: a passage is the pair `title [SEP] text`; token
types are all zero, also for the second half of the pair; the curly apostrophe in a question becomes the straight one.

Our choice: the same apostrophe rule for Spider; a passage without title is its text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from retrievers.batching import token_budget_batches
from retrievers.compute import (
    load_failures,
    no_loading_noise,
    pick_batch_tokens,
    pick_device,
    pick_dtype,
    require,
    spec_sha256,
    tokenizer_sha256,
    weights_sha256,
)
from retrievers.encoders import Vectors
from retrievers.errors import RetrieverError
from retrievers.types import Passage

Pair = tuple[str, str | None]


class TowerOptions(TypedDict, total=False):
    """How an encoder is loaded and run.

    Attributes:
        revision: hub revision.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        dtype: of the weights: `float32`, `bfloat16`, or `auto` (bf16 where the device multiplies it natively).
        batch_tokens: padded tokens a batch; None suits the device (`retrievers.compute.pick_batch_tokens`).
        max_length: window in tokens of a question or passage, special tokens included; 256 where it is not given.
    """

    revision: str | None
    device: str
    dtype: str
    batch_tokens: int | None
    max_length: int


class Tower:
    """One encoder and its tokenizer. DPR has two of them, Spider one.

    A passage beyond the window is cut and counted in `truncated_passages`.
    """

    def __init__(
        self,
        model: str,
        model_class: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        max_length: int = 256,
    ) -> None:
        """Load `model` (folder or hub id) as the transformers class `model_class`.

        Raises:
            RetrieverError: the model or its tokenizer cannot be loaded, or the window is beyond the model's positions.
        """
        self._torch = require("torch")
        transformers = require("transformers")
        self._device = pick_device(device)
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model, revision=revision)
            with no_loading_noise():
                loaded = getattr(transformers, model_class).from_pretrained(model, revision=revision)
        except load_failures() as error:
            raise RetrieverError(f"cannot load {model!r} as {model_class} with its tokenizer: {error}") from error
        positions = loaded.config.max_position_embeddings
        if not 3 <= max_length <= positions:
            raise RetrieverError(f"max_length is {max_length}; {model!r} takes 3 to {positions} tokens.")
        self.weights = weights_sha256(loaded)
        torch_dtype = pick_dtype(dtype, self._device)
        self.precision = str(torch_dtype).removeprefix("torch.")
        self._model = loaded.eval().requires_grad_(False).to(self._device, torch_dtype)
        self.tokenizer_sha256 = tokenizer_sha256(self._tokenizer)
        self.max_length = max_length
        self.dim: int = int(loaded.config.projection_dim or loaded.config.hidden_size)
        self.truncated_passages = 0
        self._batch_tokens = pick_batch_tokens(batch_tokens, self._device)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """[N, D] float32."""
        return self._encode([(straight_apostrophes(query), None) for query in queries])[0]

    def encode_passages(self, passages: Sequence[Passage]) -> Vectors:
        """[N, D] float32."""
        vectors, truncated = self._encode([(p.title, p.text) if p.title else (p.text, None) for p in passages])
        self.truncated_passages += truncated
        return vectors

    def _encode(self, pairs: Sequence[Pair]) -> tuple[Vectors, int]:
        """Vectors [N, D] float32 in the order given, and how many rows were cut to the window.

        A row that is too long loses the end of its longer part (its text, but for a monstrous title).
        """
        full = [self._ids(first, second, cut=False) for first, second in pairs]
        truncated = sum(len(ids) > self.max_length for ids in full)
        rows_ids = [
            ids if len(ids) <= self.max_length else self._ids(*pair, cut=True)
            for ids, pair in zip(full, pairs, strict=True)
        ]
        vectors = np.zeros((len(pairs), self.dim), dtype=np.float32)
        for rows in token_budget_batches([len(ids) for ids in rows_ids], batch_tokens=self._batch_tokens):
            vectors[rows] = self._forward([rows_ids[row] for row in rows])
        return vectors, truncated

    def _ids(self, first: str, second: str | None, *, cut: bool) -> list[int]:
        options: dict[str, Any] = {"truncation": True, "max_length": self.max_length} if cut else {"truncation": False}
        return list(self._tokenizer(first, second, verbose=False, **options)["input_ids"])

    def _forward(self, batch: list[list[int]]) -> Vectors:
        torch = self._torch
        width = max(len(ids) for ids in batch)
        ids = torch.full((len(batch), width), self._tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        with torch.inference_mode():
            output = self._model(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids))
        return output.pooler_output.float().cpu().numpy()


class DPREncoder:
    """DPR's two encoders, such as `facebook/dpr-question_encoder-single-nq-base` and its `ctx` sibling."""

    def __init__(self, question_model: str, context_model: str, **options: Unpack[TowerOptions]) -> None:
        """Load both encoders (folders or hub ids).

        Raises:
            RetrieverError: one cannot be loaded, or their vectors differ in length.
        """
        self._question = Tower(question_model, "DPRQuestionEncoder", **options)
        self._context = Tower(context_model, "DPRContextEncoder", **options)
        if self._question.dim != self._context.dim:
            raise RetrieverError(
                f"{question_model!r} gives vectors of {self._question.dim} numbers, {context_model!r} of "
                f"{self._context.dim}; expected a question and a context encoder that were trained together."
            )
        self.dim = self._context.dim
        self.precision = self._context.precision

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """[N, D] float32."""
        return self._question.encode_queries(queries)

    def encode_passages(self, passages: Sequence[Passage]) -> Vectors:
        """[N, D] float32."""
        return self._context.encode_passages(passages)

    @property
    def truncated_passages(self) -> int:
        """Passages that were cut to the window since the encoder was made."""
        return self._context.truncated_passages

    def fingerprint(self) -> str:
        """SHA-256 over both encoders' weights, tokenizers and the window."""
        return f"dpr:{towers_sha256(self._question, self._context)}"


class SpiderEncoder:
    """Spider's one encoder for questions and passages (`tau/spider`)."""

    def __init__(self, model: str, **options: Unpack[TowerOptions]) -> None:
        """Load the encoder (folder or hub id) in transformers' DPRContextEncoder form.

        Raises:
            RetrieverError: it cannot be loaded.
        """
        self._tower = Tower(model, "DPRContextEncoder", **options)
        self.dim = self._tower.dim
        self.precision = self._tower.precision

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """[N, D] float32."""
        return self._tower.encode_queries(queries)

    def encode_passages(self, passages: Sequence[Passage]) -> Vectors:
        """[N, D] float32."""
        return self._tower.encode_passages(passages)

    @property
    def truncated_passages(self) -> int:
        """Passages that were cut to the window since the encoder was made."""
        return self._tower.truncated_passages

    def fingerprint(self) -> str:
        """SHA-256 over the encoder's weights, tokenizer and window."""
        return f"spider:{towers_sha256(self._tower)}"


def straight_apostrophes(question: str) -> str:
    """U+2019 replaced by the ASCII apostrophe, as in DPR's reader of questions."""
    return question.replace("\u2019", "'")


def towers_sha256(*towers: Tower) -> str:
    """SHA-256 over weights, tokenizers and windows, in the order given."""
    return spec_sha256({"towers": [[tower.weights, tower.tokenizer_sha256, tower.max_length] for tower in towers]})
