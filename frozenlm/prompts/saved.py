"""How a trained prompt method is saved and loaded, and what loading checks beyond `frozenlm.checkpoint`: the names and
shapes of its tensors, its encoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.interface import PromptInput
from frozenlm.rows import Soft

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.lm import FrozenLM


class SavedPrompt(nn.Module):
    """A trained prompt method: `forward(inputs)` gives [B, P, H].

    It says its `KIND`, its `settings`, and what it makes of them and its tensors: `from_saved`.
    """

    KIND: ClassVar[str]

    def segments(self, inputs: Sequence[PromptInput]) -> list[Soft]:
        """Each input's prompt as a piece of its row."""
        return [Soft(vectors) for vectors in self(inputs)]

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


def fill_exactly(module: nn.Module, tensors: Mapping[str, Tensor], where: Path | str) -> None:
    """Puts saved tensors into a module that has the same names and shapes, no more and no less.

    Raises: CheckpointError.
    """
    expected = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise CheckpointError(
            f"{where} holds {found}; a {type(module).__name__} of these settings holds {expected}; "
            "load the LM and the encoder it was trained for, or train it again"
        )
    module.load_state_dict(dict(tensors))


def check_encoder(config: Mapping[str, Any], encoder: "FrozenEncoder", where: Path | str) -> None:
    """Refuses an encoder other than the one the module was trained on: its vectors would mean something else.

    Raises: CheckpointError.
    """
    saved = config.get("encoder_fingerprint")
    if saved != encoder.fingerprint:
        raise CheckpointError(
            f"{where} was trained on another encoder: its encoder fingerprint is {str(saved)[:16]}..., this one's is "
            f"{encoder.fingerprint[:16]}...; load the encoder it was trained on, or train it again"
        )
