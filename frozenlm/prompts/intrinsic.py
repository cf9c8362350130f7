"""Intrinsic prompt tuning, second stage: Qin et al. 2021, "Exploring Universal Intrinsic Task Subspace via Prompt
Tuning", arXiv 2110.07867, section 3.

The prompt of a new task is looked for in the space that an auto-encoder has found over many tasks
(`prompt_autoencoder.py`): its decoder is frozen, and the d numbers that it makes a prompt of are all that is trained
and all that is saved, 250 a task by default. The decoder is shared by any number of such prompts and lies in the
auto-encoder's own folder; a prompt is only ever loaded with the decoder that it was trained with.

Our choice: training begins at the mean code of the auto-encoder's tasks. The paper draws it at random.
Shapes: B rows, P soft tokens, H hidden size, d size of a code, d' of the decoder's hidden layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frozenlm.checkpoint import load_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.fingerprint import digest_tensors, fingerprint
from frozenlm.prompts.constant import ConstantPrompt
from frozenlm.prompts.interface import Position
from frozenlm.prompts.saved import SavedPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "intrinsic_prompt"


class PromptDecoder:
    """Codes to prompts; frozen, and never a part of what is trained. Made by `PromptAutoEncoder.decoder`.

    tensors: hidden.weight [d', d], hidden.bias, up.weight [P x H, d'], up.bias, and centre [d]; copied
    length: P
    position: where its prompts stand
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, length: int, position: Position) -> None:
        self._held = nn.Module()
        for name, tensor in tensors.items():
            # The centre is computed, so its last bits depend on the machine: no part of the fingerprint.
            self._held.register_buffer(name.replace(".", "_"), tensor.detach().clone(), persistent=name != "centre")
        self.length, self.position = length, position
        self.hidden_size = len(tensors["up.bias"]) // length
        self.dimension = len(tensors["centre"])
        self.fingerprint = fingerprint(digest_tensors(self._held))

    @property
    def centre(self) -> Tensor:
        """[d] where the search begins."""
        return self._held.get_buffer("centre")

    def __call__(self, codes: Tensor) -> Tensor:
        """[d] -> [P, H], differentiable in the codes."""
        self._held.to(codes.device)
        part = self._held.get_buffer
        hidden = torch.tanh(functional.linear(codes, part("hidden_weight"), part("hidden_bias")))
        vectors = functional.linear(hidden, part("up_weight"), part("up_bias")).float()
        return vectors.view(self.length, self.hidden_size)


class IntrinsicPrompt(ConstantPrompt, SavedPrompt):
    """A prompt that is d trained numbers for a frozen decoder.

    decoder: makes the prompt; never a part of what is trained
    code: [d] where it begins; copied. None is the decoder's centre

    Raises: ShapeError for a code of another size; ConfigError for values that are not finite.
    """

    KIND = KIND

    def __init__(self, decoder: PromptDecoder, code: Tensor | None = None) -> None:
        super().__init__()
        start = decoder.centre if code is None else code
        if start.shape != (decoder.dimension,):
            raise ShapeError(f"the code is {list(start.shape)}; the decoder takes [{decoder.dimension}]")
        if not bool(torch.isfinite(start).all()):
            raise ConfigError("an intrinsic prompt cannot start from NaN or Inf")
        self.decoder, self.position = decoder, decoder.position
        self.code = nn.Parameter(start.detach().to(torch.float32, copy=True))

    @classmethod
    def create(cls, lm: "FrozenLM", decoder: PromptDecoder, *, seed: int | None = None) -> "IntrinsicPrompt":
        """A new prompt for an LM.

        seed: of a random start, N(0, 1) numbers of the centre's size (the paper's form); None begins at the centre

        Raises: ShapeError for a decoder of another LM's width.
        """
        if decoder.hidden_size != lm.hidden_size:
            raise ShapeError(
                f"the decoder's prompts are {decoder.hidden_size} wide, the LM's embeddings {lm.hidden_size}"
            )
        if seed is None:
            return cls(decoder)
        drawn = torch.randn(decoder.dimension, generator=torch.Generator().manual_seed(seed))
        return cls(decoder, drawn * decoder.centre.square().mean().sqrt().cpu())

    @staticmethod
    def parameter_count(*, dimension: int) -> int:
        """d."""
        return dimension

    @property
    def length(self) -> int:
        """P."""
        return self.decoder.length

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.decoder.hidden_size

    def forward(self) -> Tensor:
        """[P, H]"""
        return self.decoder(self.code)

    @torch.no_grad()
    def collapse(self) -> SoftPrompt:
        """The prompt that the decoder makes, as a plain soft prompt."""
        return SoftPrompt(self(), position=self.position)

    def extra_repr(self) -> str:
        """What `print(prompt)` shows."""
        return f"length={self.length}, dimension={len(self.code)}, position={self.position!r}"

    def settings(self) -> dict[str, Any]:
        """Whose code it is, and what it makes."""
        return {"decoder_fingerprint": self.decoder.fingerprint, "length": self.length, "position": self.position}

    @classmethod
    def load(  # type: ignore[override]  # the numbers say nothing without the decoder they are for
        cls, folder: Path | str, lm: "FrozenLM", decoder: PromptDecoder, *, allow_other_lm: bool = False
    ) -> "IntrinsicPrompt":
        """Reads what `save` wrote.

        allow_other_lm: accept a prompt that was trained for an LM with other weights (of the same hidden size)

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another LM or decoder.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=lm.fingerprint, allow_other_lm=allow_other_lm)
        saved = config.get("decoder_fingerprint")
        if saved != decoder.fingerprint:
            raise CheckpointError(
                f"{folder} was trained with another decoder: its fingerprint is {str(saved)[:16]}..., this one's is "
                f"{decoder.fingerprint[:16]}...; load the auto-encoder it was trained with, or train it again"
            )
        if decoder.hidden_size != lm.hidden_size:
            raise CheckpointError(f"{folder} holds a prompt {decoder.hidden_size} wide; this LM needs {lm.hidden_size}")
        code = tensors.get("code")
        if set(tensors) != {"code"} or code is None:
            raise CheckpointError(f"{folder} holds {sorted(tensors)}; expected the code of an intrinsic prompt")
        try:
            return cls(decoder, code)
        except ShapeError as error:
            raise CheckpointError(f"{folder} does not fit its decoder: {error}") from error
