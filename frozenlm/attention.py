"""Attention prefixes: keys and values that every attention of a frozen model sees before those of the text.

    with prefixed(model, {"decoder": prefix}):       # prefix [L, 2, P, K, D], or [B, L, 2, P, K, D] with one a row
        model(...)                                   # differentiable in the prefix; the cache holds the text alone

One a row is for calls that run the rows as one batch: the model's own, `lm.forward`, `lm.token_logprobs`. Calls that
split and reorder rows (`score`, `generate`) refuse it; for those prefixes are memories (`mixed.py`).

Prefix tuning (Li & Liang, arXiv 2101.00190) and P-tuning v2 (arXiv 2110.07602) stand on this. The prefix reaches the
model through transformers' `AttentionInterface`: for the while, a function of ours joins prefix and keys at each
attention call and widens the mask. So encoders and cross-attention can have prefixes too, rows of a batch may have
different ones, and gradient checkpointing works (with the backward pass inside the block, which is when the layers run
again). Outside the model runs through its own attention, bit for bit.

`position_offset` gives the text positions from P on, as if the prefix were P tokens of text (`attention_positions.py`);
otherwise the text keeps its positions, and T5's bias of a prefix is 0. A sliding window slides over the text alone:
the prefix is always seen (our choice).
Shapes: B rows, Q queries, N keys, P prefix, L attention layers of a place, K key-value heads, D head size.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from frozenlm.errors import ConfigError, ShapeError

Place = Literal["encoder", "decoder", "cross"]
"""Self-attention of an encoder or of a decoder, or a decoder's attention to what the encoder made."""

OURS = {"sdpa": "frozenlm_prefix_sdpa", "eager": "frozenlm_prefix_eager"}


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an attention: who, with which keys and values [B, K, N, D], and whether each query sees only what is
    before it."""

    module: nn.Module
    keys: Tensor
    values: Tensor
    causal: bool


@dataclass(frozen=True, eq=False)
class Standing:
    """What stands before the keys of one attention: keys and values [B or 1, K, P, D], and the module that knows the
    bias of distances, where the prefix counts as P tokens."""

    keys: Tensor
    values: Tensor
    distances: Any | None = None


_standing: dict[int, tuple[Standing, ...]] = {}
_record: ContextVar[list[Call] | None] = ContextVar("attention calls", default=None)


@contextmanager
def through_ours(model: nn.Module) -> Iterator[None]:
    """For the while, the model's attentions call our function.

    Raises:
        ConfigError: the model runs another attention than sdpa or eager, or one of its own that cannot be replaced.
    """
    _register()
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if _has_attention(part)}
    before: list[tuple[Any, str]] = [(config, config._attn_implementation) for config in configs.values()]
    unknown = {str(name) for _, name in before} - {*OURS, *OURS.values()}
    if unknown or not before or not _can_be_set(model):
        raise ConfigError(
            f"no prefix can stand in the attention of {type(model).__name__} "
            f"({', '.join(sorted(unknown)) or 'written in the model itself'}): expected a model of transformers whose "
            "attention is sdpa or eager, through AttentionInterface; load it with attn_implementation='sdpa', or use "
            "a soft prompt"
        )
    try:
        for config, name in before:
            # Not its public setter: that reaches into the configs of parts, which have names of their own to come back.
            config._attn_implementation_internal = OURS.get(name, name)
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Call]]:
    """The attention calls of the block, in order.

    Raises:
        ConfigError: as `through_ours`.
    """
    calls: list[Call] = []
    with through_ours(model):
        token = _record.set(calls)
        try:
            yield calls
        finally:
            _record.reset(token)


@contextmanager
def standing(model: nn.Module, prefixes: Mapping[nn.Module, Standing]) -> Iterator[None]:
    """For the while, these stand before the keys of these attentions, after what stands there already."""
    with ExitStack() as stack:
        stack.enter_context(through_ours(model))
        for module, prefix in prefixes.items():
            stack.callback(_put, id(module), _standing.get(id(module), ()))
            _put(id(module), (*_standing.get(id(module), ()), prefix))
        yield


def rows_have_their_own(model: nn.Module) -> bool:
    """Whether what stands in the model now is of the rows of one batch, in their order."""
    mine = [_standing.get(id(part), ()) for part in model.modules()] if _standing else []
    return any(prefix.keys.shape[0] > 1 for prefixes in mine for prefix in prefixes)


def _put(module: int, prefixes: tuple[Standing, ...]) -> None:
    if prefixes:
        _standing[module] = prefixes
    else:
        _standing.pop(module, None)


def _register() -> None:
    for theirs, ours in OURS.items():
        if ours not in ALL_ATTENTION_FUNCTIONS.valid_keys():
            AttentionInterface.register(ours, partial(_attention, theirs))
            AttentionMaskInterface.register(ours, ALL_MASK_ATTENTION_FUNCTIONS[theirs])


def _attention(
    theirs: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """The model's own attention (sdpa or eager) over the prefixes and the text.

    query [B, H, Q, D]; key, value [B, K, N, D]; attention_mask [B or 1, 1 or H, Q, N], true or 0 where seen
    """
    calls = _record.get()
    if calls is not None:
        calls.append(Call(module, key, value, _is_causal(module, more)))
    for prefix in reversed(_standing.get(id(module), ())):
        columns, causal = prefix.keys.shape[2], _is_causal(module, more)
        attention_mask = _widened_mask(attention_mask, query, key, columns, causal)
        if more.get("position_bias") is not None:
            more["position_bias"] = _widened_bias(more["position_bias"], prefix, query.shape[2], key.shape[2])
        key, value = _joined(prefix.keys, key), _joined(prefix.values, value)
    return _function(theirs, module)(module, query, key, value, attention_mask, **more)


def _widened_mask(mask: Tensor | None, query: Tensor, key: Tensor, columns: int, causal: bool) -> Tensor | None:
    """The mask with the prefix's columns, which every query sees, in front."""
    if mask is None:
        if not causal or query.shape[2] == 1:
            return None
        # transformers leaves a causal mask out where the attention can make it by itself; with a prefix it cannot.
        mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
    return functional.pad(mask, (columns, 0), value=1 if mask.dtype == torch.bool else 0)


def _widened_bias(bias: Tensor, prefix: Standing, queries: int, keys: int) -> Tensor:
    """T5's bias [1, H, Q, N] with the prefix's columns in front: by distance, or 0."""
    columns = prefix.keys.shape[2]
    if prefix.distances is None:
        return functional.pad(bias, (columns, 0))
    whole = prefix.distances.compute_bias(
        queries, columns + keys, device=bias.device, past_seen_tokens=columns + keys - queries
    )
    return torch.cat([whole[..., :columns].to(bias.dtype), bias], dim=-1)


def _joined(prefix: Tensor, text: Tensor) -> Tensor:
    """[B or 1, K, P, D] before [B, K, N, D]."""
    if prefix.shape[0] not in (1, text.shape[0]):
        raise ShapeError(
            f"prefixes of {prefix.shape[0]} rows in a batch of {text.shape[0]}; give one for each row, or one for all"
        )
    return torch.cat([prefix.to(text).expand(text.shape[0], -1, -1, -1), text], dim=2)


def _is_causal(module: nn.Module, more: Mapping[str, Any]) -> bool:
    given = more.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _function(theirs: str, module: nn.Module) -> Callable[..., Any]:
    if theirs != "eager":
        return ALL_ATTENTION_FUNCTIONS[theirs]
    found = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if found is None:
        raise ConfigError(
            f"{type(module).__name__} has no eager attention that takes a prefix; load with attn_implementation='sdpa'"
        )
    return found


def _has_attention(part: nn.Module) -> bool:
    config = getattr(part, "config", None)
    return isinstance(config, PreTrainedConfig) and config._attn_implementation is not None


def _can_be_set(model: nn.Module) -> bool:
    asked = getattr(model, "_can_set_attn_implementation", None)
    return asked is not None and bool(asked())
