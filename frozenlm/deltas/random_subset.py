"""A random subset: a share of the weights, drawn once from a seed, is trained as differences; all others are frozen.

The plainest specification method, against which chosen subsets (BitFit, DiffPruning) must show what their choice is
worth; used as such in the Delta Tuning survey (arXiv 2203.06904) and in DiffPruning (2012.07463, random baseline). The
indices come from the seed again when it is loaded, so only the values and a digest of the indices are saved: should
another version of torch draw other numbers, loading says so. Shapes: N weights covered, n of them trained.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, replaced
from frozenlm.deltas.flat import Flat, Targets, check_saved, count_of, plain_targets, saved_targets
from frozenlm.errors import CheckpointError

KIND = "random_subset"


class RandomSubset(nn.Module):
    """`values` [n] at n indices drawn from a seed; made with `create` or `load`."""

    def __init__(self, flat: Flat, values: Tensor, *, share: float, seed: int, targets: Targets) -> None:
        super().__init__()
        self.flat, self.share, self.seed, self._targets = flat, share, seed, targets
        self.values = nn.Parameter(values.float())
        self._index = draw(flat.total, len(values), seed)

    @classmethod
    def create(cls, host: Host, *, share: float = 0.005, targets: Targets = "all", seed: int = 0) -> "RandomSubset":
        """Before training: the LM itself.

        Args:
            share: the part of the weights covered that is trained.
            targets: which weights are covered (`Flat.of`).

        Raises:
            ConfigError: a share out of range, or unknown targets.
        """
        flat = Flat.of(host.model, targets)
        return cls(flat, torch.zeros(count_of(share, flat.total)), share=share, seed=seed, targets=targets)

    @staticmethod
    def parameter_count(weights: int, share: float) -> int:
        """Trained numbers at a share of N weights."""
        return count_of(share, weights)

    @property
    def index(self) -> Tensor:
        """[n] int64, rising: which of the N weights are trained."""
        return self._index

    def attached(self, model: nn.Module) -> Any:
        """The model with the values added at the indices."""
        self._index = self._index.to(self.values.device)
        return replaced(model, self.flat.added_at(model, self._index, self.values))

    def save(self, folder: Path | str, lm: Host) -> None:
        """Write the values, the seed and the digest of the indices.

        Raises:
            CheckpointError: values that are not finite, or a folder that cannot be written.
        """
        config = {
            "share": self.share,
            "seed": self.seed,
            "targets": plain_targets(self._targets),
            "index_sha256": _digest(self._index),
        }
        save_module(folder, {"values": self.values}, config, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Host, *, allow_other_lm: bool = False) -> "RandomSubset":
        """Read what `save` wrote and draw the indices again.

        Raises:
            CheckpointError: missing, damaged, trained for another LM, or the indices come out otherwise.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        share, seed, targets = config.get("share"), config.get("seed"), saved_targets(config, folder)
        if not isinstance(share, float | int) or type(seed) is not int:
            raise CheckpointError(f"{folder} holds settings that are not of a random subset: {config}; train it again")
        flat = Flat.of(host.model, targets)
        check_saved(tensors, {"values": [count_of(share, flat.total)]}, folder)
        loaded = cls(flat, tensors["values"], share=share, seed=seed, targets=targets)
        if _digest(loaded.index) != config.get("index_sha256"):
            raise CheckpointError(
                f"{folder}: seed {seed} draws other indices here than where it was saved, so its values belong to "
                f"other weights; use the version of torch it was trained with (here {torch.__version__})"
            )
        return loaded


def draw(total: int, count: int, seed: int) -> Tensor:
    """`count` different numbers below `total`, each set of them equally likely; rising, int64.

    Drawn with repeats left out until there are enough, so that memory goes with count and not with total.
    """
    generator = torch.Generator().manual_seed(seed)
    found = torch.empty(0, dtype=torch.long)
    while len(found) < count:
        found = torch.cat([found, torch.randint(total, (count,), generator=generator)]).unique()
    return found[torch.randperm(len(found), generator=generator)[:count]].sort().values


def _digest(index: Tensor) -> str:
    return hashlib.sha256(index.cpu().numpy().tobytes()).hexdigest()
