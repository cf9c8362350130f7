"""P-tuning v2: Liu et al. 2021, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning", arXiv 2110.07602.

A prefix at every layer of an encoder or a decoder, trained itself and with no network around it, and a linear head in
the place of a verbalizer. The head is a thing of its own (`frozenlm/task_heads.py`), which goes with any delta:

    delta, head = PTuningV2.create(encoder, 20), ClassificationHead.create(encoder, labels)
    classification_loss(encoder, head, delta, examples)                              # `frozenlm/encoder_tasks.py`

The paper's lengths: below 20 for easy classification, about 100 for tagging. Beyond the head it differs from direct
prefix tuning in name and defaults alone; the start (real keys and values of a text) and `position_offset` are ours to
choose, as in `prefix_tuning.py`.
Shapes: P prefix, L attention layers of a place, K key-value heads, D head size.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from frozenlm.attention import Place
from frozenlm.attention_places import Layers, prefixed
from frozenlm.deltas.prefix_initializers import PrefixInitializer
from frozenlm.deltas.prefix_parameters import (
    checked_prefixes,
    load_prefixes,
    prefix_memory,
    prefix_numbers,
    save_prefixes,
    started_prefixes,
)
from frozenlm.memory import Memory

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "p_tuning_v2"


class PTuningV2(nn.Module):
    """P trained keys and values a layer.

    prefixes: [L, 2, P, K, D] a place; copied
    position_offset: whether the text's positions begin at P

    Raises: ConfigError, ShapeError for what cannot be a prefix.
    """

    def __init__(self, prefixes: Mapping[Place, Tensor], *, position_offset: bool = True) -> None:
        super().__init__()
        self.position_offset = position_offset
        free = checked_prefixes(prefixes)
        self.prefixes = nn.ParameterDict({place: nn.Parameter(prefix) for place, prefix in free.items()})

    @classmethod
    def create(
        cls,
        host: Any,
        length: int = 20,
        *,
        init: PrefixInitializer | None = None,
        places: Sequence[Place] | None = None,
        position_offset: bool = True,
        seed: int = 0,
    ) -> "PTuningV2":
        """A new prefix for an LM or an encoder; arguments and errors as `PrefixTuning.create`."""
        return cls(started_prefixes(host, length, init, places, seed), position_offset=position_offset)

    @property
    def length(self) -> int:
        """P."""
        return next(iter(self().values())).shape[2]

    @property
    def positions_taken(self) -> int:
        """How many of the model's positions are no longer the text's."""
        return self.length if self.position_offset else 0

    def forward(self) -> dict[Place, Tensor]:
        """[L, 2, P, K, D] a place."""
        return {cast(Place, place): prefix for place, prefix in self.prefixes.items()}

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the model reads every text behind the prefix."""
        return prefixed(model, self(), position_offset=self.position_offset)

    def as_memory(self, lm: "FrozenLM") -> Memory:
        """As `PrefixTuning.as_memory`."""
        return prefix_memory(lm, self(), position_offset=self.position_offset)

    def save(self, folder: Path | str, lm: Any) -> None:
        """Writes the prefix; errors as `PrefixTuning.save`."""
        save_prefixes(folder, self(), lm, position_offset=self.position_offset, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Any, *, allow_other_lm: bool = False) -> "PTuningV2":
        """Reads what `save` wrote; errors as `PrefixTuning.load`."""
        prefixes, offset = load_prefixes(folder, host, allow_other_lm=allow_other_lm, kind=KIND)
        return cls(prefixes, position_offset=offset)


def parameter_count(layers: Mapping[Place, Layers], length: int) -> int:
    """How many numbers are trained: P x 2 L K D a place."""
    return prefix_numbers(layers, length)
