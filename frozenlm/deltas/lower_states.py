"""What lies below the trained blocks is computed once an example: hidden states kept in memory from step to step.

    delta = PartialLayers.create(lm, blocks=2)
    delta.lower_states = LowerStates(max_bytes=4 * 2**30)

A row is known by a hash of what enters the first block, its own columns only, so the same text is found again in any
batch, with any padding, and another soft prompt before it is another row. A batch skips the blocks below when all of
its rows are known; when the budget is spent no more rows are kept (and `refused` counts them), since throwing out old
ones would, going round and round through a data set, throw out each just before it is needed. Results are equal but for
the last bits, in which a row's states depend on the shape of the batch they were computed in.

Decoder-only LMs and BERT-like encoders whose blocks give back one tensor. Runs with a memory or a cache of keys and
values, and soft prompts that want a gradient, go the plain way. Shapes: B rows, T columns, H hidden size.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from frozenlm.attention import OURS
from frozenlm.deltas.attach import HOOKS, hooked
from frozenlm.errors import ConfigError

MAX_BYTES = 2**30


class LowerStates:
    """Hidden states [n, H] of rows, up to a budget.

    Args:
        max_bytes: of all states together; on the device where they were computed.

    Attributes:
        hits, misses: batches that skipped the blocks below, and that did not.
        refused: rows not kept because the budget was spent, repeats counted.
        nbytes: of what is kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        if max_bytes < 1:
            raise ConfigError(f"max_bytes is {max_bytes}; expected at least 1, or no LowerStates at all")
        self.max_bytes = max_bytes
        self.hits = self.misses = self.refused = self.nbytes = 0
        self._rows: dict[bytes, Tensor] = {}

    @contextmanager
    def over(self, model: Any, below: Sequence[nn.Module]) -> Iterator[None]:
        """For the while, the model's blocks `below` run only for rows that are not known.

        Raises:
            ConfigError: an encoder-decoder; and when the model runs: blocks that give back more than one tensor, or
                another delta that changes what lies below.
        """
        if model.config.is_encoder_decoder:
            raise ConfigError(
                f"lower_states is for one stack of blocks, and {type(model).__name__} is an encoder-decoder, whose "
                "decoder also depends on the encoder; set lower_states to None"
            )
        run = _Run(self, model, below)
        try:
            for number, block in enumerate(below):
                block.forward = partial(run.block, number, block.forward)
            with hooked([(model.base_model, run.note_mask)], before=True):
                yield
        finally:
            for block in below:
                vars(block).pop("forward", None)

    def find(self, keys: Sequence[bytes]) -> list[Tensor] | None:
        """The states of all these rows, or None."""
        found = [self._rows[key] for key in keys if key in self._rows]
        known = len(found) == len(keys)
        self.hits, self.misses = self.hits + known, self.misses + (not known)
        return found if known else None

    def keep(self, key: bytes, states: Tensor) -> None:
        """Keep a row's states, if the budget allows."""
        size = states.numel() * states.element_size()
        if key in self._rows:
            return
        if self.nbytes + size > self.max_bytes:
            self.refused += 1
            return
        self._rows[key], self.nbytes = states.detach().clone(), self.nbytes + size


class _Run:
    """One attachment: carries a batch's mask and keys from the first block to the last one below."""

    def __init__(self, states: LowerStates, model: Any, below: Sequence[nn.Module]) -> None:
        self._states, self._model, self._below = states, model, below
        self._mask: Tensor | None = None
        self._keys: list[bytes] = []
        self._found: Tensor | None = None

    def note_mask(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        mask = kwargs.get("attention_mask")
        self._mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        return args, kwargs

    def block(self, number: int, forward: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stands for the forward pass of a block below."""
        last = number == len(self._below) - 1
        if number == 0:
            self._look_up(hidden, [*args, *kwargs.values()])
        if self._found is not None:
            return self._found if last else hidden
        output = forward(hidden, *args, **kwargs)
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"the blocks of {type(self._model).__name__} give back more than hidden states, which lower_states "
                "cannot keep; set it to None"
            )
        if last and self._mask is not None:
            for key, row, mask in zip(self._keys, output, self._mask, strict=False):
                self._states.keep(key, row[mask])
        return output

    def _look_up(self, hidden: Tensor, others: Sequence[Any]) -> None:
        self._keys, self._found, mask = [], None, self._mask
        goes_on = any(isinstance(value, Cache) for value in others)
        if goes_on or hidden.requires_grad or mask is None or mask.shape != hidden.shape[:2]:
            return
        self._check_untouched()
        setting = str((hidden.dtype, torch.is_autocast_enabled(hidden.device.type))).encode()
        self._keys = [_digest(row[columns], setting) for row, columns in zip(hidden, mask, strict=True)]
        found = self._states.find(self._keys)
        if found is not None:
            self._found = torch.zeros_like(hidden, dtype=found[0].dtype)
            self._found[mask] = torch.cat(found)

    def _check_untouched(self) -> None:
        parts = [part for block in self._below for part in block.modules()]
        touched = any(getattr(part, kind) for part in parts for kind in HOOKS)
        touched |= any(
            not isinstance(p, nn.Parameter) for part in parts for p in part._parameters.values() if p is not None
        )
        if touched or self._model.config._attn_implementation in OURS.values():
            raise ConfigError(
                "another delta changes the blocks below, so their states do not stay the same; set lower_states to None"
            )


def _digest(states: Tensor, setting: bytes) -> bytes:
    values = states.detach().contiguous().cpu().view(torch.uint8)
    return hashlib.blake2b(setting + str(states.shape).encode() + values.numpy().tobytes(), digest_size=20).digest()
