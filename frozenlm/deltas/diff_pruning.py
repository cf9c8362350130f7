"""DiffPruning: Guo, Rush, Kim 2020, "Parameter-Efficient Transfer Learning with Diff Pruning", arXiv 2012.07463.

A task is theta0 + z * w: a difference w of each weight under a gate z that can close (`hard_concrete.py`). Structured
(section 2.3), a gate of the whole group stands over those of its weights, here a tensor or a layer. Two phases:

    gated = DiffPruning.create(lm)                              # values w = 0, alpha = 5: the LM itself
    ... train on loss + units * gated.penalty()                 # gated.learning_rates: 0.1 for the gates
    sparse = gated.pruned()                                     # the largest 0.5% of z * w; mask fixed
    ... train again on the loss alone, then sparse.save(...)    # indices and values, nothing else

Gates are drawn anew on every entry of `attach` in training mode (torch's own generator, which the training loop seeds)
and are not random in eval mode. Saving before the pruning keeps all gates, so that it can be trained on.
Shapes: N weights covered, n of them kept, G groups.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, replaced
from frozenlm.deltas.flat import Flat, Grouping, Targets, check_saved, count_of, plain_targets, saved_targets
from frozenlm.deltas.hard_concrete import gates, open_probability
from frozenlm.errors import CheckpointError, ConfigError

KIND = "diff_pruning"
ALPHA = 5.0
ALPHA_RATE = 0.1
PENALTY = 1.25e-7


class DiffPruning(nn.Module):
    """A sparse difference, gated or already pruned; made with `create`, `pruned` or `load`.

    Parameters: gated, `values` [N], `alpha` [N] and, structured, `group_alpha` [G]; pruned, `values` [n], and `index`
    [n] (int64, sorted) as a buffer.
    """

    alpha: nn.Parameter | None
    group_alpha: nn.Parameter | None
    index: Tensor | None

    def __init__(
        self, flat: Flat, tensors: dict[str, Tensor], *, groups: list[int], settings: dict[str, Any], penalty: float
    ) -> None:
        super().__init__()
        self.flat, self._groups, self._settings, self._penalty = flat, groups, settings, penalty
        self.values = nn.Parameter(tensors["values"].float())
        for name in ("alpha", "group_alpha"):
            self.register_parameter(name, nn.Parameter(tensors[name].float()) if name in tensors else None)
        self.register_buffer("index", tensors["index"].long() if "index" in tensors else None)

    @classmethod
    def create(
        cls,
        host: Host,
        *,
        share: float = 0.005,
        structured: Grouping | None = "tensor",
        penalty: float = PENALTY,
        targets: Targets = "model",
        seed: int = 0,
    ) -> "DiffPruning":
        """The gated difference before training: the LM itself. It draws nothing at its start, whatever the seed.

        Args:
            share: the part of the weights covered that `pruned` keeps; 0.5% in the paper.
            structured: groups with a gate of their own; the paper's form is "tensor", None is its unstructured form.
            penalty: of one weight that is expected to differ.
            targets: which weights are covered (`Flat.of`); all of them in the paper.

        Raises:
            ConfigError: a share or a penalty out of range, unknown targets or groups.
        """
        flat = Flat.of(host.model, targets)
        count_of(share, flat.total)
        if not 0 <= penalty < float("inf"):
            raise ConfigError(f"penalty is {penalty}; expected a finite number of at least 0, for each expected weight")
        groups = [] if structured is None else flat.groups(host.model, structured)
        tensors = {"values": torch.zeros(flat.total), "alpha": torch.full((flat.total,), ALPHA)}
        if groups:
            tensors["group_alpha"] = torch.full((max(groups) + 1,), ALPHA)
        settings = {"share": share, "structured": structured, "targets": plain_targets(targets), "penalty": penalty}
        return cls(flat, tensors, groups=groups, settings=settings, penalty=penalty)

    @staticmethod
    def parameter_count(weights: int, groups: int = 0) -> int:
        """Trained numbers of the gated difference over N weights in G groups; pruned, it is the n that were kept."""
        return 2 * weights + groups

    @property
    def is_pruned(self) -> bool:
        """Whether the mask is fixed."""
        return self.index is not None

    @property
    def learning_rates(self) -> dict[str, float]:
        """Rates of the parameters that have one of their own, by name."""
        return {name: ALPHA_RATE for name, _ in self.named_parameters() if name.endswith("alpha")}

    def attached(self, model: nn.Module) -> Any:
        """The model of theta0 + z * w."""
        if self.index is not None:
            return replaced(model, self.flat.added_at(model, self.index, self.values))
        return replaced(model, self.flat.added(model, self.difference()))

    def difference(self) -> Tensor:
        """z * w [N] of the gated form, random in training mode.

        Raises:
            ConfigError: it is pruned already.
        """
        difference = self.values * gates(self._gated(), self._noise(self._gated()))
        if self.group_alpha is None:
            return difference
        of_group = gates(self.group_alpha, self._noise(self.group_alpha))
        parts = zip(difference.split(self.flat.sizes), self._groups, strict=True)
        return torch.cat([part * of_group[group] for part, group in parts])

    def expected_l0(self) -> Tensor:
        """How many weights are expected to differ: a scalar, differentiable in the gates; n once it is pruned."""
        if self.is_pruned:
            return self.values.new_tensor(float(len(self.values)))
        chance = open_probability(self._gated())
        if self.group_alpha is None:
            return chance.sum()
        of_group = open_probability(self.group_alpha)
        parts = zip(chance.split(self.flat.sizes), self._groups, strict=True)
        return torch.stack([part.sum() * of_group[group] for part, group in parts]).sum()

    def penalty(self) -> Tensor:
        """What a loss adds for each of its units: penalty times the expected L0 norm; 0 once it is pruned."""
        return self.values.new_zeros(()) if self.is_pruned else self._penalty * self.expected_l0()

    @torch.no_grad()
    def pruned(self) -> "DiffPruning":
        """The second phase: the `share` of the weights whose z * w is largest, with these values and a fixed mask.

        Fewer where fewer differ from 0.

        Raises:
            ConfigError: it is pruned already, or nothing differs: train the gated form first.
        """
        was_training = self.training
        difference = self.eval().difference()
        self.train(was_training)
        keep = min(count_of(self._settings["share"], self.flat.total), int(difference.count_nonzero()))
        if not keep:
            raise ConfigError("no weight differs from the LM's own, so there is nothing to prune; train this first")
        index = difference.abs().topk(keep).indices.sort().values
        tensors = {"values": difference[index], "index": index}
        return DiffPruning(self.flat, tensors, groups=[], settings=self._settings, penalty=0.0)

    def save(self, folder: Path | str, lm: Host) -> None:
        """Write indices and values, or before the pruning values and gates.

        Raises:
            CheckpointError: values that are not finite, or a folder that cannot be written.
        """
        tensors = dict(self.state_dict())
        if self.index is not None:
            tensors["index"] = self.index.to(torch.int32 if self.flat.total < 2**31 else torch.int64)
        save_module(folder, tensors, self._settings, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Host, *, allow_other_lm: bool = False) -> "DiffPruning":
        """Read what `save` wrote, of either phase.

        Raises:
            CheckpointError: missing, damaged, or trained for another LM.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        flat = Flat.of(host.model, saved_targets(config, folder))
        structured, share, penalty = config.get("structured"), config.get("share"), config.get("penalty")
        known = structured in (None, "tensor", "layer")
        if not known or not isinstance(share, float | int) or not isinstance(penalty, float | int):
            raise CheckpointError(f"{folder} holds settings that are not DiffPruning's: {config}; train it again")
        if "index" in tensors:
            keep = min(tensors["index"].numel(), count_of(share, flat.total))
            check_saved(tensors, {"values": [keep], "index": [keep]}, folder)
            _check_index(tensors["index"], flat.total, folder)
            return cls(flat, tensors, groups=[], settings=config, penalty=0.0)
        groups = [] if structured is None else flat.groups(host.model, structured)
        of_group = {"group_alpha": [max(groups) + 1]} if groups else {}
        check_saved(tensors, {"values": [flat.total], "alpha": [flat.total]} | of_group, folder)
        return cls(flat, tensors, groups=groups, settings=config, penalty=penalty)

    def _gated(self) -> Tensor:
        if self.alpha is None:
            raise ConfigError("this difference is pruned and has no gates any more; make a new one with create")
        return self.alpha

    def _noise(self, alpha: Tensor) -> Tensor | None:
        return torch.rand_like(alpha) if self.training else None


def _check_index(index: Tensor, total: int, where: Path | str) -> None:
    rising = len(index) > 0 and not index.is_floating_point() and bool((index[1:] > index[:-1]).all())
    if not rising or int(index[0]) < 0 or int(index[-1]) >= total:
        raise CheckpointError(
            f"{where} holds indices that do not rise within 0..{total - 1}; load the model it was trained for"
        )
