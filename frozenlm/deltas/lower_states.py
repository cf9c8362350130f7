"""What lies below the trained blocks is computed once a row: hidden states kept in memory from step to step.

    delta = PartialLayers.create(lm, blocks=2)
    delta.keep_lower_states(lm, max_bytes=4 * 2**30)

A row is known by a hash of what enters the first block, its own columns only, and of its positions, so the same text is
found again in any batch, with any padding, and another soft prompt before it is another row. A row that is not known
runs by itself, without padding. Its states are therefore the same bits in whatever batch it is met first, kept or not,
in a run that was stopped and goes on as in one left alone; they differ in the last bits from what the row gives within
a batch. Cost: on an accelerator rows one by one are slower than a batch, the first time round. When the budget is spent
no more rows are kept (`refused` counts them), since throwing out old ones would, going round and round through a data
set, throw out each just before it is needed.

Decoder-only LMs and BERT-like encoders whose blocks give back one tensor. Runs with a memory or a cache of keys and
values, and soft prompts that want a gradient, go the plain way. Under autocast states are those of autocast, and kept
apart from the others. Shapes: B rows, T columns, n of them a row's own, H hidden size.
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
        hits, misses: rows that were known, and that were not.
        refused: rows not kept because the budget was spent, repeats counted.
        nbytes: of what is kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        if max_bytes < 1:
            raise ConfigError(f"max_bytes is {max_bytes}; expected at least 1, or no LowerStates at all")
        self.max_bytes = max_bytes
        self.hits = self.misses = self.refused = self.nbytes = 0
        self._rows: dict[bytes, Tensor] = {}

    @property
    def counts(self) -> dict[str, int]:
        """What it has done and holds, as JSON values."""
        return {name: getattr(self, name) for name in ("hits", "misses", "refused", "nbytes")} | {
            "rows": len(self._rows)
        }

    @contextmanager
    def over(self, model: Any, stack: Sequence[nn.Module], below: int) -> Iterator[None]:
        """For the while, of the model's blocks `stack` the first `below` run only for rows that are not known.

        Raises:
            ConfigError: an encoder-decoder; and when the model runs: blocks that give back more than one tensor, or
                another delta that changes what lies below.
        """
        if model.config.is_encoder_decoder:
            raise ConfigError(
                f"lower_states is for one stack of blocks, and {type(model).__name__} is an encoder-decoder, whose "
                "decoder also depends on the encoder; leave lower_states off"
            )
        run = _Run(self, model, stack[:below])
        try:
            for number, block in enumerate(stack):
                stands = partial(run.below, number) if number < below else run.above
                block.forward = partial(stands, block.forward)
            with hooked([(model.base_model, run.note_call)], before=True):
                yield
        finally:
            for block in stack:
                vars(block).pop("forward", None)

    def find(self, key: bytes) -> Tensor | None:
        """A row's states, where they are kept."""
        found = self._rows.get(key)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def keep(self, key: bytes, states: Tensor) -> None:
        """Keep a row's states, if the budget allows."""
        size = states.numel() * states.element_size()
        if self.nbytes + size > self.max_bytes:
            self.refused += 1
            return
        self._rows[key], self.nbytes = states.detach().clone(), self.nbytes + size


class _Run:
    """One attachment: knows how the model was called, and puts found states where the last block below gives its own.

    A row runs by itself inside the first block of its batch: the model is called once more with the row alone, and the
    blocks above then let everything through.
    """

    def __init__(self, states: LowerStates, model: Any, below: Sequence[nn.Module]) -> None:
        self._states, self._model, self._below = states, model, below
        self._call: tuple[Any, dict[str, Any]] = (), {}
        self._alone = False
        self._found: Tensor | None = None
        self._made: Tensor | None = None

    def note_call(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self._call = args, kwargs
        return args, kwargs

    def below(self, number: int, forward: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stands for the forward pass of a block below."""
        last = number == len(self._below) - 1
        if not self._alone:
            if number == 0:
                self._found = self._look_up(hidden, [*args, *kwargs.values()])
            if self._found is not None:
                return self._found if last else hidden
        output = forward(hidden, *args, **kwargs)
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"the blocks of {type(self._model).__name__} give back more than hidden states, which lower_states "
                "cannot keep; leave it off"
            )
        if last and self._alone:
            self._made = output
        return output

    def above(self, forward: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stands for the forward pass of a trained block."""
        return hidden if self._alone else forward(hidden, *args, **kwargs)

    def _look_up(self, hidden: Tensor, others: Sequence[Any]) -> Tensor | None:
        """The states [B, T, H] of a batch; None where it is to go the plain way."""
        args, call = self._call
        mask = call.get("attention_mask")
        if args or hidden.requires_grad or any(isinstance(value, Cache) for value in others):
            return None
        if not isinstance(mask, Tensor) or mask.shape != hidden.shape[:2] or torch.is_inference_mode_enabled():
            return None
        if any(isinstance(value, Tensor) and value.shape[:2] != mask.shape for value in call.values()):
            return None
        self._check_untouched()
        found = torch.zeros_like(hidden)
        states = [self._row(row, mask[row].bool(), hidden[row]) for row in range(len(hidden))]
        found = found.to(states[0].dtype)
        found[mask.bool()] = torch.cat(states)
        return found

    def _row(self, row: int, columns: Tensor, entering: Tensor) -> Tensor:
        """The states [n, H] of a row, from before or made now."""
        positions = self._call[1].get("position_ids")
        kind = entering.device.type
        setting = [entering.dtype, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)]
        places = None if positions is None else positions[row][columns].tolist()
        key = _digest(entering[columns], str([*setting, places]))
        found = self._states.find(key)
        if found is None:
            found = self._run_alone(row, columns)
            self._states.keep(key, found)
        return found

    @torch.no_grad()
    def _run_alone(self, row: int, columns: Tensor) -> Tensor:
        call = {
            name: value[row : row + 1, columns] if isinstance(value, Tensor) else value
            for name, value in self._call[1].items()
        }
        self._alone = True
        try:
            self._model.base_model.forward(**call)  # not by calling it: its hooks belong to the batch
        finally:
            self._alone = False
        made, self._made = self._made, None
        return made[0]  # type: ignore[index]  # the last block below has just set it

    def _check_untouched(self) -> None:
        parts = [part for block in self._below for part in block.modules()]
        touched = any(getattr(part, kind) for part in parts for kind in HOOKS)
        touched |= any("base_layer" in part._modules for part in parts)  # a wrapper of peft
        touched |= any(
            not isinstance(p, nn.Parameter) for part in parts for p in part._parameters.values() if p is not None
        )
        if touched or self._model.config._attn_implementation in OURS.values():
            raise ConfigError(
                "another delta changes the blocks below, so their states do not stay the same; leave lower_states off"
            )


def check_model(model: Any, stack: Sequence[nn.Module], below: int) -> None:
    """Whether states below can be kept at all: one token is read.

    Raises:
        ConfigError: nothing lies below, an encoder-decoder, or blocks that give back more than one tensor.
    """
    if not below:
        raise ConfigError(
            f"all {len(stack)} blocks are trained, so nothing lies below that could be kept; leave lower_states off, "
            "or train fewer blocks"
        )
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad(), LowerStates().over(model, stack, below):
        model.base_model(input_ids=token, attention_mask=torch.ones_like(token))


def _digest(states: Tensor, setting: str) -> bytes:
    values = states.detach().contiguous().cpu().view(torch.uint8)
    return hashlib.blake2b(f"{setting} {states.shape}".encode() + values.numpy().tobytes(), digest_size=20).digest()
