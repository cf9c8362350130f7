"""Where prefixes can stand in a model, and putting them there.

Which attentions a model has is not read off their names: it is run once on two tokens, and every call of the
attention interface is noted with its number of heads. So whatever goes through transformers' interface can take
prefixes, and whatever does not is refused. A decoder-only LM has the place "decoder", an encoder "encoder", and an
encoder-decoder "encoder", "decoder" and "cross".
Shapes: B rows, T tokens, P prefix, L attention layers of a place, K key-value heads, D head size, H hidden size.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from frozenlm.attention import Call, Place, Standing, recorded, standing
from frozenlm.attention_positions import distances, shifted
from frozenlm.deltas.attach import hooked
from frozenlm.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Layers:
    """The attentions of one place: `count` L layers of `heads` K key-value heads of size `head_size` D."""

    count: int
    heads: int
    head_size: int

    def shape(self, length: int) -> tuple[int, int, int, int, int]:
        """[L, 2, P, K, D] of a prefix of that length."""
        return (self.count, 2, length, self.heads, self.head_size)


_known: "WeakKeyDictionary[nn.Module, dict[Place, tuple[nn.Module, ...]]]" = WeakKeyDictionary()
_sizes: "WeakKeyDictionary[nn.Module, dict[Place, Layers]]" = WeakKeyDictionary()


def places(model: Any) -> dict[Place, Layers]:
    """Where prefixes can stand.

    Raises:
        ConfigError: nowhere: the model's attention is its own, shares a module among layers, or changes size from layer
            to layer.
    """
    if model not in _sizes:
        _find(model)
    return _sizes[model]


@contextmanager
def prefixed(model: Any, prefixes: Mapping[Place, Tensor], *, position_offset: bool = False) -> Iterator[None]:
    """For the while, the prefixes stand before the text at these places; differentiable in them.

    Args:
        prefixes: [L, 2, P, K, D] a place (of a layer: keys, then values), or [B, L, 2, P, K, D] with one a row, for
            calls that run the rows as one batch.
        position_offset: the text's positions begin at P, as if the prefix were P tokens; not for "cross".

    Raises:
        ConfigError: as `places`; a place that the model does not have; positions that cannot be offset.
        ShapeError: a prefix for other layers or heads; (within) a batch of another number of rows, or a text that does
            not fit behind the prefix.
    """
    sizes = places(model)
    put: dict[nn.Module, Standing] = {}
    with ExitStack() as stack:
        for place, prefix in prefixes.items():
            if place not in sizes:
                raise ConfigError(f"{type(model).__name__} has no {place!r} attention; it has {', '.join(sizes)}")
            columns = _checked(prefix, sizes[place], place).shape[3]
            body = None if place == "cross" or not position_offset else _stacks(model)[place]
            if body is not None:
                stack.enter_context(hooked(shifted(body, columns), before=True))
            bias = None if body is None else distances(body)
            # [B or 1, L, 2, P, K, D] -> L pairs of [B or 1, K, P, D]
            rows = (prefix if prefix.ndim == 6 else prefix.unsqueeze(0)).transpose(3, 4)
            for module, (keys, values) in zip(
                _known[model][place], (layer.unbind(1) for layer in rows.unbind(1)), strict=True
            ):
                put[module] = Standing(keys, values, bias)
        stack.enter_context(standing(model, put))
        yield


@torch.no_grad()
def keys_values(model: Any, ids: Sequence[int], answer_ids: Sequence[int] = ()) -> dict[Place, Tensor]:
    """The real keys and values [L, 2, T, K, D] of a text, a place.

    Args:
        ids: T tokens; an encoder-decoder's encoder reads them, and "cross" is of them too.
        answer_ids: what an encoder-decoder's decoder reads after it.

    Raises:
        ConfigError: as `places`.
        ShapeError: no token.
    """
    sizes = places(model)
    if not ids or ("cross" in sizes and not answer_ids):
        raise ShapeError("keys and values of no token were asked for; give at least one")
    calls = {call.module: call for call in _run(model, ids, answer_ids)}
    return {
        place: torch.stack(
            [torch.stack([calls[m].keys[0], calls[m].values[0]]) for m in modules]  # L x [2, K, T, D]
        ).transpose(2, 3)
        for place, modules in _known[model].items()
    }


def _find(model: Any) -> None:
    calls = _run(model, (0, 0), (0, 0, 0))
    if not calls:
        raise ConfigError(
            f"the attention of {type(model).__name__} does not go through transformers' AttentionInterface, so no "
            "prefix can stand in it; use a soft prompt or another delta"
        )
    found: dict[Place, list[Call]] = {}
    for number, call in enumerate(calls):
        found.setdefault(_place(model, call, number, calls), []).append(call)
    sizes: dict[Place, Layers] = {}
    for place, of_place in found.items():
        shapes = {(call.keys.shape[1], call.keys.shape[3], *call.values.shape[1::2]) for call in of_place}
        if len(shapes) > 1 or len({id(call.module) for call in of_place}) < len(of_place):
            raise ConfigError(
                f"{type(model).__name__}: the {place} attentions share a module or differ in heads "
                f"({sorted(shapes)}); prefixes are for models whose layers have attentions of their own, all of one "
                "size"
            )
        heads, size, *values = shapes.pop()
        if [heads, size] != values:
            raise ConfigError(f"{type(model).__name__} has keys and values of different sizes; no prefix fits both")
        sizes[place] = Layers(len(of_place), heads, size)
    _known[model] = {place: tuple(call.module for call in of_place) for place, of_place in found.items()}
    _sizes[model] = sizes


def _place(model: Any, call: Call, number: int, calls: Sequence[Call]) -> Place:
    if not _encodes_and_decodes(model):
        return "decoder" if call.causal else "encoder"
    if call.keys.shape[2] == 3:
        return "decoder"
    return "cross" if any(before.keys.shape[2] == 3 for before in calls[:number]) else "encoder"


@torch.no_grad()
def _run(model: Any, ids: Sequence[int], answer_ids: Sequence[int]) -> list[Call]:
    """The attention calls of reading `ids`, and of a decoder that reads `answer_ids` after it."""
    with recorded(model) as calls:
        found = _stacks(model)
        if not _encodes_and_decodes(model):
            body = next(iter(found.values()))
            body(inputs_embeds=_embeds(body, ids))
            return calls
        encoder, decoder = found["encoder"], found["decoder"]
        read = encoder(inputs_embeds=_embeds(encoder, ids)).last_hidden_state
        decoder(inputs_embeds=_embeds(decoder, answer_ids), encoder_hidden_states=read, use_cache=False)
    return calls


def _embeds(body: Any, ids: Sequence[int]) -> Tensor:
    """[1, T, H]"""
    embedding = body.get_input_embeddings()
    return embedding(torch.tensor([list(ids)], device=embedding.weight.device))


def _encodes_and_decodes(model: Any) -> bool:
    return "decoder_input_ids" in inspect.signature(model.forward).parameters


def _stacks(model: Any) -> dict[str, Any]:
    """The parts that read a text by themselves. A single one goes by both names."""
    if _encodes_and_decodes(model):
        return {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    return {"encoder": model.base_model, "decoder": model.base_model}


def _checked(prefix: Tensor, layers: Layers, place: Place) -> Tensor:
    """[1 or B, L, 2, P, K, D], or a ShapeError."""
    rows = prefix if prefix.ndim == 6 else prefix.unsqueeze(0)
    if rows.ndim != 6 or rows.shape[3] < 1 or tuple(rows.shape[1:]) != layers.shape(rows.shape[3]):
        raise ShapeError(
            f"a {place} prefix of this model is [L, 2, P, K, D] = "
            f"[{layers.count}, 2, P, {layers.heads}, {layers.head_size}], with P at least 1 and one more size in front "
            f"where rows have their own; got {list(prefix.shape)}; was it trained for another LM?"
        )
    return rows
