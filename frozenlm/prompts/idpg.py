"""IDPG: Wu et al. 2022, "IDPG: An Instance-Dependent Prompt Generation Method", arXiv 2204.04497, section 3.

A small network writes the prompt from one vector of the input, made by a frozen encoder:

    p(x) = W0 + U relu(D m(x) + b)          m(x) [E], D: E -> d, U: d -> P x H, W0 [P, H] the same for every input

Both matrices may be PHM layers (sums of n Kronecker products, W = sum_i A_i (x) B_i with A_i [n, n]), which divides
their numbers by n; the A_i are shared by the two. The paper's setting E = H = 1024, P = 5, d = 256, n = 16 makes
107,776 trained numbers, W0 and b included: its 105K, counted in units of 1,024 (1,578,240 without PHM, its 1.5M).

Only the single-layer form is here. Our choices: m(x) is the mean of the encoder's token vectors (the authors' code
takes RoBERTa's first token, or GloVe); W0 starts from an initialiser and U at zero, so that step 0 is prompt tuning; no
dropout; the encoder is any frozen one. Vectors are kept by text: neither the encoder nor what it reads changes.
Shapes: B rows, P soft tokens, H hidden size of the LM, E of the encoder, d bottleneck, n factors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompts.initializers import Initializer
from frozenlm.prompts.interface import Position, PromptInput
from frozenlm.prompts.saved import SavedPrompt, check_encoder, fill_exactly
from frozenlm.prompts.soft_prompt import SoftPrompt, check_width
from frozenlm.prompts.text_vectors import TextVectors

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.lm import FrozenLM

KIND = "idpg"


class IDPG(SavedPrompt):
    """A prompt generated from a frozen sentence vector, on top of a prompt for all inputs.

    encoder: makes m(x); never a part of what is trained
    prompt: [P, H] where W0 begins; copied
    bottleneck: d, the width of the network
    phm: n; 1 is a plain two-layer network. It must divide E, d and P x H
    position: "prefix" or "suffix"
    seed: of D

    Raises: ShapeError, ConfigError for a bad prompt, size or position.
    """

    KIND = KIND

    def __init__(
        self,
        encoder: "FrozenEncoder",
        prompt: Tensor,
        *,
        bottleneck: int = 16,
        phm: int = 1,
        position: Position = "suffix",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.prompt = SoftPrompt(prompt, position=position).vectors
        _check_sizes(encoder.hidden_size, bottleneck, self.prompt.numel(), phm)
        self.encoder, self.position = encoder, position
        self.vectors = TextVectors(encoder.vectors)
        draw = torch.Generator().manual_seed(seed)
        rule = torch.randn(phm, phm, phm, generator=draw) / phm**0.5
        self.rule: nn.Parameter | None = nn.Parameter(rule) if phm > 1 else None
        down = torch.randn(phm, encoder.hidden_size // phm, bottleneck // phm, generator=draw)
        self.down = nn.Parameter(down / encoder.hidden_size**0.5)
        self.bias = nn.Parameter(torch.zeros(bottleneck))
        self.up = nn.Parameter(torch.zeros(phm, bottleneck // phm, self.prompt.numel() // phm))

    @classmethod
    def create(
        cls,
        lm: "FrozenLM",
        encoder: "FrozenEncoder",
        length: int = 20,
        *,
        init: Initializer | None = None,
        bottleneck: int = 16,
        phm: int = 1,
        position: Position = "suffix",
        seed: int = 0,
    ) -> "IDPG":
        """A new generator; the same seed gives the same one, and one that begins as the soft prompt of that seed.

        init: of W0, from `frozenlm.prompts.initializers`; sampled vocabulary by default

        Raises: ConfigError for a length below 1 or a bad size; what the initialiser raises.
        """
        start = SoftPrompt.create(lm, length, init=init, seed=seed)
        return cls(encoder, start.vectors, bottleneck=bottleneck, phm=phm, position=position, seed=seed)

    @staticmethod
    def parameter_count(*, encoder_size: int, hidden_size: int, length: int, bottleneck: int, phm: int = 1) -> int:
        """W0 and b, D and U divided by n, and the n shared matrices [n, n] where n is above 1."""
        written = length * hidden_size
        return written + bottleneck + bottleneck * (encoder_size + written) // phm + (phm**3 if phm > 1 else 0)

    @property
    def length(self) -> int:
        """P."""
        return self.prompt.shape[0]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.prompt.shape[1]

    def forward(self, inputs: Sequence[PromptInput]) -> Tensor:
        """B inputs -> [B, P, H]"""
        if not inputs:
            return self.prompt.new_zeros(0, *self.prompt.shape)
        vectors = self.vectors([one.text for one in inputs]).to(self.prompt)
        hidden = torch.relu(self._times(vectors, self.down) + self.bias)
        return self.prompt + self._times(hidden, self.up).view(-1, *self.prompt.shape)

    def _times(self, vectors: Tensor, factors: Tensor) -> Tensor:
        """vectors [B, n a] times sum_i A_i (x) factors_i, factors [n, a, b] -> [B, n b]; the sum is never formed."""
        if self.rule is None:
            return vectors @ factors[0]
        parts = torch.einsum("bra,irc->bica", vectors.unflatten(1, (len(self.rule), -1)), self.rule)
        return torch.einsum("bica,iad->bcd", parts, factors).flatten(1)

    def too_long(self, inputs: Sequence[PromptInput]) -> list[bool]:
        """Which texts the encoder cannot read whole."""
        return self.encoder.too_long([one.text for one in inputs])

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        sizes = f"length={self.length}, hidden_size={self.hidden_size}, bottleneck={len(self.bias)}"
        return f"{sizes}, phm={len(self.down)}, position={self.position!r}"

    def settings(self) -> dict[str, Any]:
        """Position, encoder and sizes."""
        sizes = {"length": self.length, "hidden_size": self.hidden_size}
        sizes |= {"bottleneck": len(self.bias), "phm": len(self.down)}
        return {"position": self.position, "encoder_fingerprint": self.encoder.fingerprint, **sizes}

    @classmethod
    def load(  # type: ignore[override]  # it writes nothing without the encoder it was trained on
        cls, folder: Path | str, lm: "FrozenLM", encoder: "FrozenEncoder", *, allow_other_lm: bool = False
    ) -> "IDPG":
        """Reads what `save` wrote.

        allow_other_lm: accept a generator that was trained for an LM with other weights (of the same hidden size)

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another LM or encoder.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=lm.fingerprint, allow_other_lm=allow_other_lm)
        prompt, down = tensors.get("prompt"), tensors.get("down")
        if prompt is None or down is None or down.ndim != 3 or config.get("position") not in get_args(Position):
            raise CheckpointError(f"{folder} holds {sorted(tensors)} with {config}; expected an IDPG generator")
        check_encoder(config, encoder, folder)
        check_width(prompt, lm, folder)
        phm, _, part = down.shape  # not from the settings, so that they cannot ask for more than the file holds
        try:
            module = cls(encoder, prompt, bottleneck=phm * part, phm=phm, position=config["position"])
        except ConfigError as error:
            raise CheckpointError(f"{folder} holds tensors of impossible sizes: {error}") from error
        fill_exactly(module, tensors, folder)
        return module


def _check_sizes(encoder_size: int, bottleneck: int, written: int, phm: int) -> None:
    if bottleneck < 1 or phm < 1:
        raise ConfigError(f"IDPG: bottleneck is {bottleneck} and phm {phm}; expected whole numbers of at least 1")
    sizes = {"the encoder's size": encoder_size, "bottleneck": bottleneck, "length x hidden size": written}
    odd = [f"{name} {size}" for name, size in sizes.items() if size % phm]
    if odd:
        raise ConfigError(
            f"IDPG: phm {phm} does not divide {', '.join(odd)}; choose a phm that does, or 1 for a plain network"
        )
