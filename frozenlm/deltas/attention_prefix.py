"""A trained attention prefix: what prefix tuning and P-tuning v2 both are, whatever made its numbers.

Shapes: P prefix, L attention layers of a place, K key-value heads, D head size.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from torch import Tensor, nn

from frozenlm.attention import Place
from frozenlm.attention_places import prefixed
from frozenlm.deltas.prefix_parameters import checked_prefixes, load_prefixes, prefix_memory, save_prefixes
from frozenlm.memory import Memory

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM


class AttentionPrefix(nn.Module):
    """P trained keys and values before those of the text, in every attention layer.

    prefixes: [L, 2, P, K, D] a place; copied
    position_offset: whether the text's positions begin at P

    Raises: ConfigError, ShapeError for what cannot be a prefix.
    """

    KIND: ClassVar[str]

    def __init__(self, prefixes: Mapping[Place, Tensor], *, position_offset: bool = True) -> None:
        super().__init__()
        self.position_offset = position_offset
        free = checked_prefixes(prefixes)
        self.prefixes = nn.ParameterDict({place: nn.Parameter(prefix) for place, prefix in free.items()})

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
        """The prefix as a memory of one row, for batches whose rows have different prefixes.

        Raises: ConfigError unless the LM is decoder-only, without a sliding window and with nothing attached.
        """
        return prefix_memory(lm, self(), position_offset=self.position_offset)

    def save(self, folder: Path | str, lm: Any) -> None:
        """Writes the prefix, and never what made it.

        Raises: CheckpointError when it holds non-finite or huge numbers, or the folder cannot be written.
        """
        save_prefixes(folder, self(), lm, position_offset=self.position_offset, kind=self.KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Any, *, allow_other_lm: bool = False) -> Self:
        """Reads what `save` wrote.

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another LM.
        """
        prefixes, offset = load_prefixes(folder, host, allow_other_lm=allow_other_lm, kind=cls.KIND)
        return cls(prefixes, position_offset=offset)
