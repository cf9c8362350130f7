"""Masking: Zhao et al. 2020, "Masking as an Efficient Alternative to Finetuning", arXiv 2004.12406, section 3.

A task leaves weights out: W * 1[M >= tau]. The real-valued M is trained by the straight-through estimator, dL/dM =
dL/d(mask) = dL/d(W * mask) * W; what is saved is the mask, one bit a weight. M begins uniform, so that a share of the
weights is left out at random at the start (5% in the paper, where more hurt); our choice: M lies within 0.02 around
tau, so that steps of about 0.001 can close and open weights. A mask of share 0 begins as the LM itself.

Only dense layers within the blocks are masked, as in the paper, no embeddings, biases or norms. A loaded module is
ready to be used and, with every M at the same distance from tau, to be trained on. Shapes: N weights covered.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, replaced
from frozenlm.deltas.flat import Flat, Targets, base, check_saved, plain_targets, saved_targets
from frozenlm.errors import CheckpointError, ConfigError

KIND = "masking"
SPREAD = 0.02


class Masking(nn.Module):
    """M [N], called `scores`, over the weights of dense layers; made with `create` or `load`.

    Attributes:
        threshold: tau.
        masked: the share that was left out at the start; None where a file of an earlier version does not say.
    """

    def __init__(
        self, flat: Flat, scores: Tensor, *, threshold: float, targets: Targets, masked: float | None = None
    ) -> None:
        super().__init__()
        self.flat, self.threshold, self.masked, self._targets = flat, threshold, masked, targets
        self.scores = nn.Parameter(scores.float())

    @classmethod
    def create(
        cls,
        host: Host,
        *,
        targets: Targets = "all",
        masked: float = 0.05,
        threshold: float = 0.01,
        seed: int = 0,
    ) -> "Masking":
        """Before training: that share of the weights, drawn at random, is left out.

        Args:
            targets: which dense layers (`target_modules`).
            masked: share of the weights left out at the start, 0 up to but not 1.
            threshold: tau.

        Raises:
            ConfigError: a value out of range, or unknown targets.
        """
        if not 0 <= masked < 1:
            raise ConfigError(f"masked is {masked}; expected a share of at least 0 and below 1, the paper's is 0.05")
        if not math.isfinite(threshold) or abs(threshold) > 1:
            raise ConfigError(f"threshold is {threshold}; expected a number between -1 and 1, near which M begins")
        if targets in ("model", "blocks"):
            raise ConfigError(
                f"targets is {targets!r}; masks are for dense layers: all, attention, feed_forward, names"
            )
        flat = Flat.of(host.model, targets)
        uniform = torch.rand(flat.total, generator=torch.Generator().manual_seed(seed))
        scores = threshold + SPREAD * (uniform - masked)
        return cls(flat, scores, threshold=threshold, targets=targets, masked=masked)

    @staticmethod
    def parameter_count(weights: int) -> int:
        """Trained numbers over N weights; as many bits are saved."""
        return weights

    def mask(self) -> Tensor:
        """1[M >= tau] as bool [N]."""
        return self.scores >= self.threshold

    def masked_share(self) -> float:
        """The share of the weights that is left out."""
        return 1 - float(self.mask().double().mean())

    def attached(self, model: nn.Module) -> Any:
        """The model without the weights that are masked; differentiable in M, straight through."""
        hard = self.mask().to(self.scores.dtype)
        through = hard + (self.scores - self.scores.detach())  # its value is `hard`, its gradient that of M
        parts = self.flat.split(through)
        return replaced(model, {name: _masked(base(model, name), part) for name, part in parts.items()})

    def save(self, folder: Path | str, lm: Host) -> None:
        """Write the mask, eight weights a byte.

        Raises:
            CheckpointError: M is not finite, or the folder cannot be written.
        """
        if not bool(torch.isfinite(self.scores).all()):
            raise CheckpointError(f"{folder}: the scores hold NaN or Inf; the training diverged, lower its rate")
        config = {"threshold": self.threshold, "targets": plain_targets(self._targets), "weights": self.flat.total}
        config |= {} if self.masked is None else {"masked": self.masked}
        save_module(folder, {"bits": pack(self.mask())}, config, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Host, *, allow_other_lm: bool = False) -> "Masking":
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or trained for another LM.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        targets, threshold = saved_targets(config, folder), config.get("threshold")
        flat = Flat.of(host.model, targets)
        if not isinstance(threshold, float | int) or config.get("weights") != flat.total:
            raise CheckpointError(
                f"{folder} masks {config.get('weights')} weights at threshold {threshold}; this model has {flat.total} "
                "of these targets; load the model it was trained for"
            )
        check_saved(tensors, {"bits": [-(-flat.total // 8)]}, folder)
        if tensors["bits"].dtype != torch.uint8:
            raise CheckpointError(f"{folder} holds bits as {tensors['bits'].dtype}, expected uint8; it is damaged")
        side = unpack(tensors["bits"], flat.total).float() * 2 - 1
        scores = threshold + side * SPREAD / 2
        return cls(flat, scores, threshold=threshold, targets=targets, masked=config.get("masked"))


def pack(mask: Tensor) -> Tensor:
    """bool [N] -> uint8 [ceil(N / 8)]; the first weight is the lowest bit of the first byte."""
    padded = torch.cat([mask, mask.new_zeros(-len(mask) % 8)]).view(-1, 8)
    return (padded.to(torch.uint8) << _places(mask)).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """The inverse of `pack`: bool [count]."""
    return ((packed.unsqueeze(1) >> _places(packed)) & 1).flatten()[:count].bool()


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    return weight * mask.to(weight.device)
