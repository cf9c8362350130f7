"""ID-PT, input-dependent prompt tuning: Levine et al. 2022, "Standing on the Shoulders of Giant Frozen Language
Models", arXiv 2204.10019, section 2.

Three parts write the prompt p(x) of an input x for the frozen LM: a frozen T5 encoder that reads x; a learned prompt
that tunes this encoder; and a learned cross-attention network with learned queries, which turns the encoder's output,
as long as x, into a prompt of fixed length. Only the last two are trained:

    p(x) = A + s W_out R(F(x, Pe))        Pe [Pe, E] the encoder prompt, F the encoder, R the network (`resampler.py`)

Our choices, where the paper is silent: all of R; the scale s, a constant, the root mean square of the LM's embeddings,
so that one learning rate suits any LM; and the anchor A [P, H], which is not in the paper: it starts where a good plain
prompt would, and what is generated is small beside it at first, so training begins at prompt tuning and not at noise.
`anchor=False` leaves it out. The encoder may be any `FrozenEncoder`.
Shapes: B inputs, P soft tokens, H hidden size of the LM, E of the encoder, W width of the network.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompts.initializers import Initializer, embedding_scale, sampled_embeddings
from frozenlm.prompts.input_dependent_sizes import PAPER, Sizes
from frozenlm.prompts.interface import Position, PromptInput
from frozenlm.prompts.resampler import Resampler
from frozenlm.prompts.saved import SavedPrompt, check_encoder, fill_exactly
from frozenlm.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.lm import FrozenLM

__all__ = ["KIND", "PAPER", "InputDependentPrompt", "Sizes"]

KIND = "input_dependent_prompt"
BESIDE_ANCHOR = 0.1  # size of what is generated at the start, in embeddings' sizes; 1 where there is no anchor


class InputDependentPrompt(SavedPrompt):
    """A prompt written for each input from what a frozen encoder makes of its text.

    Made from sizes alone it begins with an encoder prompt and an anchor of zeros and has no encoder: enough to count
    parameters, on `torch.device("meta")` too. `create` and `load` give it what it needs to run.

    sizes: shapes of all that is trained
    encoder: reads the inputs; never a part of what is trained
    position: "prefix" (the paper's form) or "suffix" (ours, the cheap one to train)
    scale: s, the size of what is generated
    seed: of the network's weights

    Raises: ConfigError for an unknown position, a scale that is not above 0, or an encoder that does not fit the sizes.
    """

    KIND = KIND

    def __init__(
        self,
        sizes: Sizes,
        encoder: "FrozenEncoder | None" = None,
        *,
        position: Position = "suffix",
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if position not in get_args(Position):
            raise ConfigError(f"position is {position!r}; expected one of {get_args(Position)}")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise ConfigError(f"scale is {scale!r}; expected a finite number above 0")
        if encoder is not None:
            _check_fit(sizes, encoder)
        self.sizes, self.encoder, self.scale = sizes, encoder, float(scale)
        self.position: Position = position
        self.encoder_prompt = _vectors(sizes.encoder_prompt, sizes.encoder_size)
        self.anchor = _vectors(sizes.length if sizes.anchor else 0, sizes.hidden_size)
        self.resampler = Resampler(
            feature_size=sizes.encoder_size,
            length=sizes.length,
            width=sizes.width,
            depth=sizes.depth,
            heads=sizes.heads,
            feed_forward=sizes.inner,
            self_attention=sizes.self_attention,
            norm=sizes.norm,
            dropout=sizes.dropout,
        )
        self.out = nn.Linear(sizes.width, sizes.hidden_size, bias=False)
        self.float()
        if not self.out.weight.is_meta:
            self._draw(torch.Generator().manual_seed(seed))

    @classmethod
    def create(
        cls,
        lm: "FrozenLM",
        encoder: "FrozenEncoder",
        length: int = 20,
        *,
        init: Initializer | None = None,
        position: Position = "suffix",
        seed: int = 0,
        **sizes: Any,
    ) -> "InputDependentPrompt":
        """A new generator; the same seed gives the same one, and an anchor that is the soft prompt of that seed.

        The encoder prompt begins as sampled vocabulary of the encoder (our choice).

        init: of the anchor, from `frozenlm.prompts.initializers`; sampled vocabulary by default
        sizes: the other fields of `Sizes`, e.g. `**PAPER`

        Raises: ConfigError for a size out of range or an encoder without room for its prompt; what the initialiser
            raises.
        """
        chosen = Sizes(hidden_size=lm.hidden_size, encoder_size=encoder.hidden_size, length=length, **sizes)
        module = cls(chosen, encoder, position=position, scale=embedding_scale(lm), seed=seed)
        with torch.no_grad():
            if module.anchor is not None:
                module.anchor.copy_(SoftPrompt.create(lm, length, init=init, seed=seed).vectors)
            if module.encoder_prompt is not None:
                draw = torch.Generator().manual_seed(seed)
                module.encoder_prompt.copy_(sampled_embeddings(encoder, chosen.encoder_prompt, draw))
        return module

    @staticmethod
    def parameter_count(**sizes: Any) -> int:
        """Trained numbers of a module of these `Sizes`, without making one."""
        return Sizes(**sizes).parameters

    @property
    def length(self) -> int:
        """P."""
        return self.sizes.length

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.sizes.hidden_size

    def forward(self, inputs: Sequence[PromptInput]) -> Tensor:
        """B inputs -> [B, P, H]; an input's prompt does not depend on the other inputs.

        Raises: ConfigError without an encoder; as `FrozenEncoder.features`.
        """
        if self.encoder is None:
            raise ConfigError("this prompt was made from sizes alone and has no encoder; use `create` or `load`")
        weight = self.out.weight
        if not inputs:
            return weight.new_zeros(0, self.length, self.hidden_size)
        features, mask = self.encoder.features([one.text for one in inputs], self.encoder_prompt)
        generated = self.scale * self.out(self.resampler(features.to(weight), mask.to(weight.device)))
        return generated if self.anchor is None else self.anchor + generated

    def too_long(self, inputs: Sequence[PromptInput]) -> list[bool]:
        """Which texts the encoder cannot read whole.

        Raises: ConfigError without an encoder.
        """
        if self.encoder is None:
            raise ConfigError("this prompt was made from sizes alone and has no encoder; use `create` or `load`")
        return self.encoder.too_long([one.text for one in inputs], self.sizes.encoder_prompt)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        shown = ", ".join(f"{name}={value!r}" for name, value in asdict(self.sizes).items() if value is not None)
        return f"{shown}, position={self.position!r}, trained={self.sizes.parameters:,}"

    def settings(self) -> dict[str, Any]:
        """Sizes, position, scale and encoder.

        Raises: ConfigError without an encoder.
        """
        if self.encoder is None:
            raise ConfigError("this prompt was made from sizes alone and belongs to no encoder; use `create`")
        own = {"position": self.position, "scale": self.scale, "encoder_fingerprint": self.encoder.fingerprint}
        return {**asdict(self.sizes), **own}

    @classmethod
    def load(  # type: ignore[override]  # it writes nothing without the encoder it was trained on
        cls, folder: Path | str, lm: "FrozenLM", encoder: "FrozenEncoder", *, allow_other_lm: bool = False
    ) -> "InputDependentPrompt":
        """Reads what `save` wrote.

        allow_other_lm: accept a generator that was trained for an LM with other weights (of the same hidden size)

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another LM or encoder;
            ConfigError when the encoder has no room for its prompt.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=lm.fingerprint, allow_other_lm=allow_other_lm)
        check_encoder(config, encoder, folder)
        names = [field.name for field in fields(Sizes)]
        try:
            sizes = Sizes(**{name: config[name] for name in names})
            # Before anything is made, so that sizes that are lies cannot ask for all the memory there is.
            if sizes.parameters != sum(tensor.numel() for tensor in tensors.values()):
                raise ConfigError(f"these sizes have {sizes.parameters:,} numbers, the file has others")
            module = cls(sizes, encoder, position=config["position"], scale=config["scale"])
        except (ConfigError, KeyError) as error:
            raise CheckpointError(f"{folder} holds settings that are damaged or not complete: {error!r}") from error
        if sizes.hidden_size != lm.hidden_size:
            raise CheckpointError(
                f"{folder} writes prompts {sizes.hidden_size} wide; this LM needs {lm.hidden_size}; "
                "load the LM it was trained for"
            )
        fill_exactly(module, tensors, folder)
        return module

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        """Matrices keep the size of what they multiply; queries are of unit size, as what they meet after a norm."""
        drawn: list[tuple[Tensor, float]] = [(self.resampler.queries, 1.0)]
        drawn += [(m.weight, m.in_features**-0.5) for m in self.resampler.modules() if isinstance(m, nn.Linear)]
        begin = 1.0 if self.anchor is None else BESIDE_ANCHOR
        drawn += [(self.out.weight, begin * self.sizes.width**-0.5)]
        for parameter, size in drawn:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


def _vectors(count: int, size: int) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(count, size)) if count else None


def _check_fit(sizes: Sizes, encoder: "FrozenEncoder") -> None:
    if encoder.hidden_size != sizes.encoder_size:
        raise ConfigError(
            f"encoder_size is {sizes.encoder_size}, but this encoder's output is {encoder.hidden_size} wide"
        )
    if sizes.encoder_prompt and encoder.embedding_size != encoder.hidden_size:
        raise ConfigError(
            f"this encoder's embeddings are {encoder.embedding_size} wide and its output {encoder.hidden_size}; an "
            "encoder prompt needs them alike: use another encoder, or encoder_prompt 0"
        )
    encoder.room(sizes.encoder_prompt)
