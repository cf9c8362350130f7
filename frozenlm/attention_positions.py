"""Positions of a text that stands behind a prefix of P: as if the prefix were P tokens of text.

peft offsets the text so, and only so do the real keys and values of P tokens, put in as a prefix, reproduce the model's
own output on what follows. Positions are handed to a model in one of three ways, and each is shifted where it passes:
an argument `position_ids` (decoder-only LMs, with learned or rotary positions), an embedding that is looked up
(BERT, BART and their kin), or a bias of distances (T5), which `attention.py` widens.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.limits import positions

Hook = tuple[nn.Module, Callable[..., Any]]


def shifted(stack: Any, columns: int) -> list[Hook]:
    """Pre-hooks under which the stack gives its text the positions from `columns` on; none where it has no positions.

    Raises:
        ConfigError: a stack that hands its positions on in a way of its own.
        (when called) ShapeError: a text that does not fit behind the prefix.
    """
    for name, part in stack.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            return [(part, _shift_lookup(columns))]
    if "position_ids" in _arguments(stack):
        return [(stack, _shift_argument(columns, positions(stack.config)))]
    for name, part in stack.named_modules():
        if name.endswith("embed_positions") and "past_key_values_length" in _arguments(part):
            return [(part, _shift_past(columns, positions(stack.config)))]
    if distances(stack) is not None:
        return []
    raise ConfigError(
        f"{type(stack).__name__} hands its positions on in a way of its own, so they cannot be offset by a prefix; "
        "use position_offset=False"
    )


def distances(stack: nn.Module) -> Any | None:
    """The attention of the stack that knows T5's bias of distances; None where there is no such bias."""
    for part in stack.modules():
        if (
            getattr(part, "has_relative_attention_bias", False)
            and "past_seen_tokens" in inspect.signature(getattr(part, "compute_bias", len)).parameters
        ):
            return part
    return None


def _shift_lookup(columns: int) -> Callable[..., Any]:
    def hook(embedding: nn.Embedding, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        ids = args[0] + columns
        _check(int(ids.max()) + 1, embedding.num_embeddings, columns)
        return (ids, *args[1:]), kwargs

    return hook


def _shift_argument(columns: int, limit: int | None) -> Callable[..., Any]:
    def hook(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = _named(stack, args, kwargs)
        ids = given.get("position_ids")
        if ids is None:
            ids = _counted(given)
        _check(int(ids.max()) + 1 + columns, limit, columns)
        return (), given | {"position_ids": ids + columns}

    return hook


def _shift_past(columns: int, limit: int | None) -> Callable[..., Any]:
    def hook(embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = _named(embedding, args, kwargs)
        ids, before = given.get("position_ids"), given.get("past_key_values_length", 0)
        if ids is not None:
            _check(int(ids.max()) + 1 + columns, limit, columns)
            return (), given | {"position_ids": ids + columns}
        read = next(iter(given.values()))  # [B, T, ...], or only its shape
        _check(int(before) + int((read if isinstance(read, tuple) else read.shape)[1]) + columns, limit, columns)
        return (), given | {"past_key_values_length": before + columns}

    return hook


def _counted(given: dict[str, Any]) -> Tensor:
    """[1, T] the positions that a stack counts by itself."""
    ids, embeds, cache = (given.get(name) for name in ("input_ids", "inputs_embeds", "past_key_values"))
    read = ids if ids is not None else embeds
    if read is None:
        raise ShapeError("the model was called with neither input_ids nor inputs_embeds; give one of them by name")
    before = 0 if cache is None else int(cache.get_seq_length())
    return torch.arange(before, before + read.shape[1], device=read.device).unsqueeze(0)


def _check(needed: int, limit: int | None, columns: int) -> None:
    if limit is not None and needed > limit:
        raise ShapeError(
            f"a text behind a prefix of {columns} needs {needed} positions, the model has {limit}; shorten the text or "
            "the prefix, or use position_offset=False"
        )


def _arguments(part: nn.Module) -> Any:
    return inspect.signature(part.forward).parameters


def _named(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name."""
    return dict(zip(_arguments(part), args, strict=False)) | kwargs
