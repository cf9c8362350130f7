"""Intrinsic dimension: Li et al. 2018, arXiv 1804.08838; Aghajanyan et al. 2020, arXiv 2012.13255.

All weights move, but only within a random subspace of d dimensions: theta0 + P theta, with a fixed projection P
(`projections.py`). In the structure-aware form (SAID, 2012.13255, section 3) each layer has a trained scale of its own,
theta0_i + lambda_i (P theta)_i; the m scales count among the d numbers, so theta has d - m. Scales begin at 1 and theta
at 0: the LM itself. Seed, theta and scales are all that is saved, with a digest of the first numbers drawn.
How few dimensions do: `intrinsic_search.py`. Shapes: d trained numbers, m scales, N weights covered.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, replaced
from frozenlm.deltas.flat import Flat, Grouping, Targets, check_saved, plain_targets, saved_targets
from frozenlm.deltas.projections import Dense, Fastfood, Projection
from frozenlm.errors import CheckpointError, ConfigError

KIND = "intrinsic_dimension"
Form = Literal["fastfood", "dense"]


class IntrinsicDimension(nn.Module):
    """`theta` [d - m] and, structure-aware, `scales` [m]; made with `create` or `load`."""

    scales: nn.Parameter | None

    def __init__(
        self, flat: Flat, theta: Tensor, scales: Tensor | None, *, groups: list[int], settings: dict[str, Any]
    ) -> None:
        super().__init__()
        self.flat, self._groups, self._settings = flat, groups, settings
        self.theta = nn.Parameter(theta.float())
        self.register_parameter("scales", None if scales is None else nn.Parameter(scales.float()))
        made = Dense if settings["projection"] == "dense" else Fastfood
        self._projection: Projection = made(flat.total, len(theta), settings["seed"])

    @classmethod
    def create(
        cls,
        host: Host,
        *,
        dimension: int = 1000,
        scales: Grouping | None = "layer",
        projection: Form = "fastfood",
        targets: Targets = "model",
        seed: int = 0,
    ) -> "IntrinsicDimension":
        """Before training: the LM itself.

        Args:
            dimension: d, all that is trained.
            scales: a scale for each "layer" (SAID) or "tensor", or None for the plain form.
            projection: "dense" for small models only.
            targets: which weights are covered (`Flat.of`); all of them in the papers.

        Raises:
            ConfigError: fewer dimensions than scales, more than weights, a dense matrix that is too large, or unknown
                settings.
        """
        if projection not in get_args(Form):
            raise ConfigError(f"projection is {projection!r}; expected fastfood or dense")
        flat = Flat.of(host.model, targets)
        groups = [] if scales is None else flat.groups(host.model, scales)
        count = max(groups) + 1 if groups else 0
        if not count < dimension <= flat.total:
            raise ConfigError(
                f"dimension is {dimension}; expected more than the {count} scales that count among them and at most "
                f"{flat.total}, the weights; scales=None goes down to 1"
            )
        settings = {"scales": scales, "projection": projection, "targets": plain_targets(targets), "seed": seed}
        ones = torch.ones(count) if groups else None
        return cls(flat, torch.zeros(dimension - count), ones, groups=groups, settings=settings)

    @staticmethod
    def parameter_count(dimension: int) -> int:
        """Trained numbers: d, scales included."""
        return dimension

    def offsets(self) -> Tensor:
        """[N] what is added to the weights."""
        projected = self._projection(self.theta)
        if self.scales is None:
            return projected
        parts = zip(projected.split(self.flat.sizes), self._groups, strict=True)
        return torch.cat([part * self.scales[group] for part, group in parts])

    def attached(self, model: nn.Module) -> Any:
        """The model at theta0 + P theta."""
        return replaced(model, self.flat.added(model, self.offsets()))

    def save(self, folder: Path | str, lm: Host) -> None:
        """Write theta, scales and the seed.

        Raises:
            CheckpointError: values that are not finite, or a folder that cannot be written.
        """
        config = self._settings | {"drawn_sha256": self._projection.digest()}
        save_module(folder, self.state_dict(), config, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Host, *, allow_other_lm: bool = False) -> "IntrinsicDimension":
        """Read what `save` wrote and draw the projection again.

        Raises:
            CheckpointError: missing, damaged, trained for another LM, or the projection comes out otherwise.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        scales, form, seed = config.get("scales"), config.get("projection"), config.get("seed")
        flat = Flat.of(host.model, saved_targets(config, folder))
        theta = tensors.get("theta")
        if scales not in (None, "tensor", "layer") or form not in get_args(Form) or type(seed) is not int:
            raise CheckpointError(f"{folder} holds settings that are not of this method: {config}; train it again")
        groups = [] if scales is None else flat.groups(host.model, scales)
        of_scales = {"scales": [max(groups) + 1]} if groups else {}
        check_saved(tensors, {"theta": [theta.numel() if theta is not None else 0]} | of_scales, folder)
        settings = {key: config[key] for key in ("scales", "projection", "targets", "seed")}
        loaded = cls(flat, tensors["theta"], tensors.get("scales"), groups=groups, settings=settings)
        if loaded._projection.digest() != config.get("drawn_sha256"):
            raise CheckpointError(
                f"{folder}: seed {seed} draws another projection here than where it was saved, so theta means "
                f"something else; use the version of torch it was trained with (here {torch.__version__})"
            )
        return loaded
