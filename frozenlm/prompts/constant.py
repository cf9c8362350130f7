"""What the prompts that are the same for every input share: their piece of a row, their saving, their loading.

Shapes: P soft tokens, H hidden size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.interface import PromptInput
from frozenlm.rows import Soft

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM


class ConstantPrompt(nn.Module):
    """A prompt whose `forward()`, without an input, gives [P, H].

    A method says its `KIND`, its `settings` and what it makes of both and its tensors, `from_saved`.
    """

    KIND: ClassVar[str]

    def segment(self) -> Soft:
        """All vectors as one piece of a row."""
        return Soft(self())

    def segments(self, inputs: Sequence[PromptInput]) -> list[Soft]:
        """The same segment for every input."""
        return [self.segment()] * len(inputs)

    def settings(self) -> dict[str, Any]:
        """What `from_saved` needs besides the tensors, as JSON values."""
        raise NotImplementedError

    def save(self, folder: Path | str, lm: "FrozenLM") -> None:
        """Writes the tensors and the settings, with the fingerprint of the LM they belong to.

        Raises: CheckpointError when a tensor holds non-finite or huge numbers, or the folder cannot be written.
        """
        save_module(folder, self.state_dict(), self.settings(), lm_fingerprint=lm.fingerprint, kind=self.KIND)

    @classmethod
    def load(cls, folder: Path | str, lm: "FrozenLM", *, allow_other_lm: bool = False) -> Self:
        """Reads what `save` wrote.

        allow_other_lm: accept a prompt that was trained for an LM with other weights (of the same hidden size)

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another LM.
        """
        fingerprint = lm.fingerprint
        tensors, config = load_module(folder, kind=cls.KIND, lm_fingerprint=fingerprint, allow_other_lm=allow_other_lm)
        try:
            return cls.from_saved(tensors, config, lm, folder)
        except (ConfigError, ShapeError) as error:
            raise CheckpointError(f"{folder} holds an impossible {cls.__name__}: {error}") from error

    @classmethod
    def from_saved(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], lm: "FrozenLM", where: Path | str
    ) -> Self:
        """From a `state_dict` and `settings`; `where` is for messages.

        Raises: CheckpointError, ConfigError, ShapeError when they do not fit each other or the LM.
        """
        raise NotImplementedError
