"""What loading a prompt generator checks beyond `frozenlm.checkpoint`: its tensors' names and shapes, its encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from frozenlm.errors import CheckpointError

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder


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
