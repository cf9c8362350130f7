"""Running the LM without its head: batches in, final hidden states out, with or without a memory before them.

Decoder-only and encoder-decoder LMs are one small class each: whole batches for training and scoring, `start` for
decoding token by token. Keys and values of a decoding run live in a `State`, which knows how to take one more token a
row and how to keep only some rows; the decoding loops know nothing else.
"""

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.memory import Memory
from frozenlm.rows import Assembled


class State(Protocol):
    """A decoding run of N sequences."""

    def step(self, ids: Tensor) -> Tensor:
        """Read one more token a sequence: ids [N] -> final hidden states [N, H]."""
        ...

    def select(self, index: Tensor) -> None:
        """Keep the sequences at index [M], in that order; one may be kept several times."""
        ...


class DecoderOnly:
    """A causal LM.

    Attributes:
        sliding: the tokens of the window that some of its layers slide over the text; None for an LM without one.

    Raises:
        ConfigError: the model has no separate body under its head.
    """

    def __init__(self, model: Any) -> None:
        body = model.base_model
        if body is model:
            raise ConfigError(
                f"{type(model).__name__} has no body apart from its head; load it with its causal-LM class"
            )
        self._body = body
        self._takes_positions = "position_ids" in inspect.signature(body.forward).parameters
        config = model.config.get_text_config(decoder=True)
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        slides = slides or (not hasattr(config, "layer_types") and getattr(config, "use_sliding_window", True))
        self.sliding: int | None = getattr(config, "sliding_window", None) if slides else None

    def hidden(self, batch: Assembled, memory: Memory | None) -> Tensor:
        """Final hidden states [B, T, H] of the batch, which goes on from the memory; differentiable."""
        return self._run(batch, memory, keep=False)[0]

    def start(self, batch: Assembled, memory: Memory | None) -> tuple[Tensor, "DecoderState"]:
        """As `hidden`, with the state from which decoding goes on."""
        hidden, cache, mask = self._run(batch, memory, keep=True)
        before = 0 if memory is None else memory.lengths
        return hidden, DecoderState(self, cache, mask, before + batch.lengths)

    def read(self, batch: Assembled, memory: Memory | None, lm_fingerprint: str) -> Memory:
        """What the batch leaves behind, after the memory it goes on from."""
        return self.start(batch, memory)[1].memory(lm_fingerprint)

    def resume(self, memory: Memory) -> "DecoderState":
        """The state to decode on from where a memory ends; the memory stays as it is."""
        return DecoderState(self, memory.to_cache(), memory.mask, memory.lengths)

    def _run(self, batch: Assembled, memory: Memory | None, *, keep: bool) -> tuple[Tensor, Any, Tensor]:
        mask = batch.mask if memory is None else torch.cat([memory.mask, batch.mask], dim=1)
        cache = memory.to_cache() if memory is not None else DynamicCache() if keep else None
        return self.forward(batch.embeds, mask, batch.positions, cache), cache, mask

    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None) -> Tensor:
        """embeds [B, T, H], mask [B, T_before + T], positions [B, T] -> final hidden states [B, T, H]."""
        self._check_sliding(mask)
        extra = {"position_ids": positions} if self._takes_positions else {}
        return self._body(
            inputs_embeds=embeds,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **extra,
        ).last_hidden_state

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> embeddings [..., H]."""
        return self._body.get_input_embeddings()(ids)

    def _check_sliding(self, mask: Tensor) -> None:
        """Sliding attention counts columns, not positions: padding inside a row would shorten its window in silence."""
        if self.sliding is None or mask.shape[1] <= self.sliding:
            return
        starts = (mask[:, 1:] > mask[:, :-1]).sum(dim=1) + (mask[:, 0] > 0)
        if bool((starts > 1).any()):
            raise ShapeError(
                f"this LM attends through a sliding window of {self.sliding} tokens, and padding lies inside a longer "
                "row; use rows of equal length in a batch, or load the LM with padding_side='left'"
            )


class DecoderState:
    """Keys and values, mask and next position of each sequence of a causal LM."""

    def __init__(self, body: DecoderOnly, cache: DynamicCache, mask: Tensor, positions: Tensor) -> None:
        self._body, self._cache, self._mask, self._positions = body, cache, mask, positions

    def step(self, ids: Tensor) -> Tensor:
        return self.feed(self._body.embed(ids))

    def feed(self, vectors: Tensor) -> Tensor:
        """As `step`, with vectors [N, H] in the place of the tokens' embeddings."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(vectors), 1)], dim=1)
        hidden = self._body.forward(vectors.unsqueeze(1), self._mask, self._positions.unsqueeze(1), self._cache)
        self._positions = self._positions + 1
        return hidden[:, -1]

    def select(self, index: Tensor) -> None:
        self._cache.batch_select_indices(index)
        self._mask, self._positions = self._mask[index], self._positions[index]

    def memory(self, lm_fingerprint: str) -> Memory:
        """What has been read so far. The tensors are shared: a further token makes new ones.

        Raises:
            ConfigError: a layer that keeps something else than keys and values.
        """
        layers: Any = self._cache.layers
        if any(not isinstance(getattr(layer, "keys", None), Tensor) for layer in layers):
            raise ConfigError("this LM has layers without keys and values; it cannot make a memory")
        keys, values = (tuple(getattr(layer, part) for layer in layers) for part in ("keys", "values"))
        return Memory(keys, values, self._mask, self._positions, lm_fingerprint)


class EncoderDecoder:
    """A seq2seq LM: rows are the encoder's input, answers the decoder's output.

    Rows are always padded on the right: these encoders count positions from the first column.
    """

    def __init__(self, model: Any) -> None:
        self._encoder, self._decoder = model.get_encoder(), model.get_decoder()
        config, generation = model.config, getattr(model, "generation_config", None)
        start = getattr(config, "decoder_start_token_id", None)
        if start is None:
            start = getattr(generation, "decoder_start_token_id", None)
        if start is None:
            start = config.pad_token_id if config.pad_token_id is not None else config.bos_token_id
        if start is None:
            raise ConfigError("the LM's config names no decoder_start_token_id; add it to config.json")
        forced = getattr(generation, "forced_bos_token_id", None)
        # What the decoder reads before the first answer token (BART checkpoints force a second one).
        self.start_ids: tuple[int, ...] = (int(start),) if forced is None else (int(start), int(forced))

    def encode(self, batch: Assembled) -> Tensor:
        """Encoder outputs [B, T, H]; differentiable."""
        return self._encoder(inputs_embeds=batch.embeds, attention_mask=batch.mask).last_hidden_state

    def read(self, batch: Assembled, lm_fingerprint: str) -> Memory:
        """The encoder's output, to decode from many times."""
        return Memory((), (), batch.mask, batch.lengths, lm_fingerprint, self.encode(batch))

    def decode(self, embeds: Tensor, mask: Tensor, encoded: Tensor, encoded_mask: Tensor) -> Tensor:
        """Decoder input embeds [B, T, H], mask [B, T] padded on the right -> final hidden states [B, T, H]."""
        return self._decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            encoder_hidden_states=encoded,
            encoder_attention_mask=encoded_mask,
            use_cache=False,
        ).last_hidden_state

    def embed(self, ids: Tensor) -> Tensor:
        """Encoder input embeddings: ids [...] -> [..., H]."""
        return self._encoder.get_input_embeddings()(ids)

    def embed_decoder(self, ids: Tensor) -> Tensor:
        """Decoder input embeddings: ids [...] -> [..., H]."""
        return self._decoder.get_input_embeddings()(ids)

    def start(self, encoded: Tensor, encoded_mask: Tensor) -> tuple[Tensor, "EncoderDecoderState"]:
        """The hidden state [B, H] that predicts the first answer token, and the state from which decoding goes on."""
        state = EncoderDecoderState(self._decoder, encoded, encoded_mask)
        hidden = encoded[:, 0]
        for start in self.start_ids:
            hidden = state.step(torch.full((len(encoded),), start, device=encoded.device))
        return hidden, state


class EncoderDecoderState:
    """Caches of self- and cross-attention, and what the encoder made."""

    def __init__(self, decoder: Any, encoded: Tensor, encoded_mask: Tensor) -> None:
        self._decoder, self._encoded, self._mask = decoder, encoded, encoded_mask
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(self, ids: Tensor) -> Tensor:
        return self._decoder(
            input_ids=ids.unsqueeze(1),
            encoder_hidden_states=self._encoded,
            encoder_attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    def select(self, index: Tensor) -> None:
        self._cache.batch_select_indices(index)
        self._encoded, self._mask = self._encoded[index], self._mask[index]
