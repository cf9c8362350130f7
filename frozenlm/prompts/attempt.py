"""ATTEMPT: Asai et al. 2022, "Parameter-Efficient Multi-task Tuning via Attentional Mixtures of Soft Prompts", arXiv
2205.11961, section 3.

Prompts that were trained before, on other tasks, are mixed with the prompt of the task at hand, by weights that depend
on the input:

    h = LayerNorm(U silu(D max_t embed(x_t)))                the query, [H], from the frozen LM's own embeddings
    a = softmax(h . max_p P_j / T), j over S sources and the target
    p(x) = P_target + sum_j a_j P_j                          so the target counts (1 + a_target) times

Trained are D, U, the norm and the targets: one a task over one shared attention network (multi-task ATTEMPT), or one
in all. The S source prompts are frozen: buffers, saved in the checkpoint, so that it needs no other file. T is H x e,
as in the authors' code (2,087 for T5-base); on an LM whose embeddings are far smaller than T5's that is a nearly even
mixture whatever x is, and a lower `temperature` is needed. D and U have no bias, as there.

Our choices: D and U start from N(0, 1 / rows); the network is not pretrained on the source tasks (an option of the
paper); padding never takes part in the maximum; a text without tokens counts as a zero vector, which at the start mixes
evenly. A text's pooled embeddings are kept: they are constants. Decoder-only LMs are served like T5.
Shapes: B rows, S sources, P soft tokens, H hidden size, r width of the network.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.initializers import Initializer
from frozenlm.prompts.interface import Position, PromptInput
from frozenlm.prompts.saved import SavedPrompt, fill_exactly
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.task_prompts import TaskPrompts, Unseen
from frozenlm.prompts.text_vectors import TextVectors

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "attempt"
ANY_TASK = "any"


class Attempt(SavedPrompt):
    """A target prompt plus a mixture of frozen source prompts and itself, weighed anew for each input.

    lm: gives embeddings; never a part of what is trained
    sources: [S, P, H]; copied, and frozen
    targets: one prompt [P, H] a task; where they stand is where this prompt stands
    width: r
    temperature: T; None is H x e
    seed: of D and U

    Raises: ShapeError for sources of another shape than the targets; ConfigError for a size or temperature out of
        range.
    """

    KIND = KIND
    sources: Tensor

    def __init__(
        self,
        lm: "FrozenLM",
        sources: Tensor,
        targets: TaskPrompts,
        *,
        width: int = 100,
        temperature: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        temperature = lm.hidden_size * math.e if temperature is None else temperature
        _check(sources, targets, width, temperature)
        self.lm, self.targets, self.temperature = lm, targets, temperature
        self.position: Position = targets.position
        self.register_buffer("sources", sources.detach().to(torch.float32, copy=True))
        self.pooled = TextVectors(self._pool)
        draw, size = torch.Generator().manual_seed(seed), targets.hidden_size
        self.down = nn.Parameter(torch.randn(size, width, generator=draw) / size**0.5)
        self.up = nn.Parameter(torch.randn(width, size, generator=draw) / width**0.5)
        self.norm = nn.LayerNorm(size)

    @classmethod
    def create(
        cls,
        lm: "FrozenLM",
        sources: Sequence[SoftPrompt | Tensor],
        length: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        init: Initializer | None = None,
        width: int = 100,
        temperature: float | None = None,
        position: Position = "suffix",
        unseen: Unseen = "error",
        seed: int = 0,
    ) -> "Attempt":
        """A new module; the same seed gives the same one.

        sources: trained prompts of this LM, all of one length; as vectors [P, H] wherever they once stood
        length: P, which is that of the sources; checked where it is given
        tasks: names, one target prompt each; None: one target prompt for every input
        init: of the targets, from `frozenlm.prompts.initializers`; sampled vocabulary by default
        unseen: as in `TaskPrompts`

        Raises: ConfigError without a source, for one trained in another position, or for a bad setting; ShapeError for
            sources that do not match.
        """
        stacked = _stacked(sources)
        if any(isinstance(one, SoftPrompt) and one.position != position for one in sources):
            raise ConfigError(
                f"a source prompt was not trained in {position} position, where this one stands; train it there, or "
                "give its vectors instead if that is meant"
            )
        if length not in (None, stacked.shape[1]):
            raise ShapeError(f"ATTEMPT of length {length} from sources of length {stacked.shape[1]}; they must agree")
        names = [ANY_TASK] if tasks is None else tasks
        targets = TaskPrompts.create(
            lm,
            names,
            stacked.shape[1],
            init=init,
            position=position,
            unseen="mean" if tasks is None else unseen,  # the mean of one prompt is that prompt
            seed=seed,
        )
        return cls(lm, stacked, targets, width=width, temperature=temperature, seed=seed)

    @staticmethod
    def parameter_count(*, hidden_size: int, length: int, width: int, tasks: int = 1) -> int:
        """D and U, the norm's gain and bias, and a target prompt a task; the sources are not trained."""
        return 2 * hidden_size * width + 2 * hidden_size + tasks * length * hidden_size

    @property
    def length(self) -> int:
        """P."""
        return self.targets.length

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.targets.hidden_size

    def forward(self, inputs: Sequence[PromptInput]) -> Tensor:
        """B inputs -> [B, P, H]"""
        if not inputs:
            return self.sources.new_zeros(0, self.length, self.hidden_size)
        targets = self.targets(inputs)
        weights = self._weights(inputs, targets)
        of_target = weights[:, -1, None, None]
        return torch.tensordot(weights[:, :-1], self.sources, dims=1) + (1 + of_target) * targets

    @torch.no_grad()
    def weights(self, inputs: Sequence[PromptInput]) -> Tensor:
        """What each input takes from each source, and last from its target: [B, S + 1], rows sum to 1."""
        return self._weights(inputs, self.targets(inputs))

    def _weights(self, inputs: Sequence[PromptInput], targets: Tensor) -> Tensor:
        pooled = self.pooled([one.text for one in inputs]).to(self.down)
        query = self.norm(functional.silu(pooled @ self.down) @ self.up)  # [B, H]
        of_sources = query @ self.sources.amax(dim=1).T
        of_target = (query * targets.amax(dim=1)).sum(dim=1, keepdim=True)
        return torch.softmax(torch.cat([of_sources, of_target], dim=1) / self.temperature, dim=1)

    def _pool(self, texts: list[str]) -> Tensor:
        """[B, H], the maximum over each text's token embeddings."""
        ids = self.lm.encode_batch(texts)
        flat = self.lm.embed(torch.tensor([i for one in ids for i in one], dtype=torch.long))
        parts = flat.split([len(one) for one in ids])
        return torch.stack([part.amax(dim=0) if len(part) else flat.new_zeros(flat.shape[1]) for part in parts])

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"sources={len(self.sources)}, width={self.down.shape[1]}, temperature={self.temperature:g}"

    def settings(self) -> dict[str, Any]:
        """Those of the targets, and sizes."""
        sizes = {"sources": len(self.sources), "width": self.down.shape[1], "temperature": self.temperature}
        return self.targets.settings() | sizes

    @classmethod
    def from_saved(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], lm: "FrozenLM", where: Path | str
    ) -> Self:
        """As `SavedPrompt.from_saved`."""
        start = "targets."
        own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        targets = TaskPrompts.from_saved(own, config, lm, where)
        sources, down, temperature = tensors.get("sources"), tensors.get("down"), config.get("temperature")
        if sources is None or down is None or down.ndim != 2 or type(temperature) not in (int, float):
            raise CheckpointError(f"{where} holds {sorted(tensors)} with {config}; expected an ATTEMPT module")
        module = cls(lm, sources, targets, width=down.shape[1], temperature=temperature)
        fill_exactly(module, tensors, where)
        return module


def _stacked(sources: Sequence[SoftPrompt | Tensor]) -> Tensor:
    """[S, P, H]"""
    found = [one.vectors if isinstance(one, SoftPrompt) else one for one in sources]
    shapes = [list(one.shape) for one in found]
    if not found:
        raise ConfigError("ATTEMPT mixes trained prompts, got no source; train at least one soft prompt first")
    if any(len(shape) != 2 for shape in shapes) or any(shape != shapes[0] for shape in shapes):
        raise ShapeError(f"source prompts are matrices [P, H] of one shape, got {shapes}; train them with one length")
    return torch.stack([one.detach().float().cpu() for one in found])


def _check(sources: Tensor, targets: TaskPrompts, width: int, temperature: float) -> None:
    expected = [targets.length, targets.hidden_size]
    if sources.ndim != 3 or list(sources.shape[1:]) != expected or not len(sources):
        raise ShapeError(f"source prompts are {list(sources.shape)}; expected [S, {expected[0]}, {expected[1]}]")
    if not bool(torch.isfinite(sources).all()):
        raise ConfigError("a source prompt holds NaN or Inf; train it again")
    if width < 1 or not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"ATTEMPT: width is {width} and temperature {temperature}; expected at least 1 and above 0")
