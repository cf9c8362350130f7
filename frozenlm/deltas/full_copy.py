"""Full fine-tuning of a copy: the yardstick of a comparison, with the frozen LM left alone.

All weights of the LM, tied ones once, are copied in float32 and trained; inside `attach` the copy stands where they
stand. It is saved whole, not as differences: W0 + (W - W0) is not W to the last bit. Needs four bytes a weight, three
more such copies while AdamW trains it, and as much disk.
Our choice: one vector over all weights, so that weight decay, which is for matrices, does not reach it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, parameter_of, replaced
from frozenlm.deltas.flat import Flat, base, check_saved
from frozenlm.errors import ConfigError

KIND = "full_copy"


class FullCopy(nn.Module):
    """`weights` [N], all of the LM's; made with `create` or `load`."""

    def __init__(self, flat: Flat, weights: Tensor) -> None:
        super().__init__()
        self.flat = flat
        self.weights = nn.Parameter(weights)

    @classmethod
    def create(cls, host: Host, *, seed: int = 0) -> "FullCopy":
        """The copy before training, whatever the seed."""
        flat = Flat.of(host.model, "model")
        with torch.no_grad():
            return cls(flat, torch.cat([base(host.model, name).flatten() for name in flat.names]))

    @staticmethod
    def parameter_count(weights: int) -> int:
        """Trained numbers: all N weights of the LM, tied ones once."""
        return weights

    def attached(self, model: nn.Module) -> Any:
        """The copy in the place of the model's weights.

        Raises:
            ConfigError: another delta stands in the place of weights already, and would be lost.
        """
        if any(not isinstance(parameter_of(model, name), nn.Parameter) for name in self.flat.names):
            raise ConfigError(
                "a full copy takes the place of all weights, and another delta stands in the place of some; attach the "
                "copy first"
            )
        parts = self.flat.split(self.weights)
        return replaced(model, {name: part.to(parameter_of(model, name).device) for name, part in parts.items()})

    def save(self, folder: Path | str, lm: Host) -> None:
        """Write all weights.

        Raises:
            CheckpointError: values that are not finite, or a folder that cannot be written.
        """
        save_module(folder, {"weights": self.weights}, {}, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Host, *, allow_other_lm: bool = False) -> "FullCopy":
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or copied from another LM.
        """
        tensors, _ = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        flat = Flat.of(host.model, "model")
        check_saved(tensors, {"weights": [flat.total]}, folder)
        return cls(flat, tensors["weights"])
