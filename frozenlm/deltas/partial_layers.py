"""Partial layers: only the last blocks of the LM are trained, as differences from the frozen ones.

The oldest of the specification methods in the Delta Tuning survey (arXiv 2203.06904, section 3.2); Lee et al. 2019,
"What Would Elsa Do?", arXiv 1911.03090, measure how many blocks it takes. What lies below is frozen, so its forward
pass records no gradient, and the backward pass ends at the lowest trained block. With `LowerStates`
(`lower_states.py`) what lies below is computed once a row.

Of an encoder-decoder these are the decoder's last blocks. Our choice: differences, zero at the start, are trained and
saved instead of weights, and the norm behind the last block joins only when asked for.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, replaced
from frozenlm.deltas.attach import blocks as blocks_of
from frozenlm.deltas.flat import Flat, check_saved
from frozenlm.deltas.lower_states import MAX_BYTES, LowerStates, check_model
from frozenlm.errors import CheckpointError, ConfigError

KIND = "partial_layers"


class PartialLayers(nn.Module):
    """`offsets` [N] of all weights of the last blocks; made with `create` or `load`.

    Attributes:
        lower_states: where states below are kept (`keep_lower_states`); None, the default, computes them every time.
            Never saved.
    """

    def __init__(self, flat: Flat, offsets: Tensor, *, blocks: int, final_norm: bool) -> None:
        super().__init__()
        self.flat, self.blocks, self.final_norm = flat, blocks, final_norm
        self.offsets = nn.Parameter(offsets.float())
        self.lower_states: LowerStates | None = None

    @classmethod
    def create(cls, host: Host, *, blocks: int = 1, final_norm: bool = False, seed: int = 0) -> "PartialLayers":
        """Before training: the LM itself, whatever the seed.

        Args:
            blocks: how many of the last ones, k.
            final_norm: train the norm behind the last block too.

        Raises:
            ConfigError: more blocks than there are, or no norm behind the last one (post-norm models: BERT, BART).
        """
        flat = Flat.named(host.model, _names(host.model, blocks, final_norm))
        return cls(flat, torch.zeros(flat.total), blocks=blocks, final_norm=final_norm)

    @staticmethod
    def parameter_count(block_weights: int, blocks: int, norm_weights: int = 0) -> int:
        """Trained numbers: a block's weights, norms and biases with them, times blocks, and those of the norm.

        A pre-norm block with biases and a feed-forward width of F has 4 H^2 + 2 H F + 9 H + F.
        """
        return block_weights * blocks + norm_weights

    def keep_lower_states(self, host: Host, *, max_bytes: int = MAX_BYTES) -> LowerStates:
        """From now on, what lies below is computed once a row and kept, up to so many bytes.

        Raises:
            ConfigError: nothing lies below, an encoder-decoder, a model whose blocks give back more than one tensor
                (T5's), or fewer than 1 byte.
        """
        self.lower_states = LowerStates(max_bytes)
        stack = [block for _, block in last_stack(host.model)]
        check_model(host.model, stack, len(stack) - self.blocks)
        return self.lower_states

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """The model with its last blocks changed."""
        stack = [block for _, block in last_stack(model)]
        below = len(stack) - self.blocks
        known = self.lower_states.over(model, stack, below) if self.lower_states and below else nullcontext()
        with replaced(model, self.flat.added(model, self.offsets)), known:
            yield

    def save(self, folder: Path | str, lm: Host) -> None:
        """Write the offsets.

        Raises:
            CheckpointError: values that are not finite, or a folder that cannot be written.
        """
        config = {"blocks": self.blocks, "final_norm": self.final_norm}
        save_module(folder, {"offsets": self.offsets}, config, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Host, *, allow_other_lm: bool = False) -> "PartialLayers":
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or trained for another LM.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        blocks, norm = config.get("blocks"), config.get("final_norm")
        if type(blocks) is not int or type(norm) is not bool:
            raise CheckpointError(f"{folder} holds settings that are not of partial layers: {config}; train it again")
        flat = Flat.named(host.model, _names(host.model, blocks, norm))
        check_saved(tensors, {"offsets": [flat.total]}, folder)
        return cls(flat, tensors["offsets"], blocks=blocks, final_norm=norm)


def last_stack(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of the model's last stack by name: the decoder's, where there is an encoder too."""
    found = blocks_of(model)
    stack = found[-1][0].rpartition(".")[0]
    return [(name, block) for name, block in found if name.rpartition(".")[0] == stack]


def _names(model: nn.Module, blocks: int, final_norm: bool) -> list[str]:
    stack = last_stack(model)
    if not 1 <= blocks <= len(stack):
        raise ConfigError(f"blocks is {blocks}; expected 1 to {len(stack)}, the blocks of {type(model).__name__}")
    inside = [f"{name}." for name, _ in stack[-blocks:]]
    if final_norm:
        inside.append(f"{_norm_behind(model, stack[-1][0])}.")
    return [name for name, _ in model.named_parameters() if name.startswith(tuple(inside))]


def _norm_behind(model: nn.Module, last_block: str) -> str:
    """The norm that stands beside the blocks and is not the embeddings'."""
    owner = last_block.rpartition(".")[0].rpartition(".")[0]
    beside = model.get_submodule(owner).named_children()
    found = [name for name, part in beside if re.search("norm", type(part).__name__, re.I) and "embed" not in name]
    if len(found) != 1:
        raise ConfigError(
            f"{type(model).__name__} has no norm behind its last block (found {found}); set final_norm to false"
        )
    return f"{owner}.{found[0]}"
