"""Verbalizers that are learned: label vectors in the place of words.

`SoftVerbalizer`: WARP (Hambardzumyan et al. 2021, arXiv 2101.00121): a vector a label stands in the place of its word's
row in the vocabulary layer; score = state . vector. It begins at the words' own rows, so that on an LM whose vocabulary
layer has no bias it begins as the manual verbalizer (a mean over pieces and synonyms).

`PrototypicalVerbalizer`: ProtoVerb (Cui et al. 2022, arXiv 2203.09770): states are projected to D numbers of length one
and compared with a prototype a label; the nearest wins. `fit_to` sets the prototypes to the class means, without
training; `loss` is the paper's, instance against instance plus instance against prototype. Our choice: one temperature
for both terms and for the scores.
Shapes: n states, C labels, H' width of the head's input, D width of a prototype.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frozenlm.checkpoint import load_module, save_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompting.filled import PromptHost
from frozenlm.prompting.scoring import head
from frozenlm.prompting.verbalizer import Verbalizer
from frozenlm.prompts.saved import fill_exactly

PROTOTYPE_WIDTH = 64


class _LabelVectors(nn.Module):
    """What both have: labels, a word for each to show in demonstrations, files.

    Attributes:
        template: the text of the template that it is trained in, kept with it; None where any may use it.
    """

    KIND = ""

    def __init__(self, words: Verbalizer) -> None:
        super().__init__()
        self.manual = words
        self.template: str | None = None
        self.labels, self.owners = words.labels, tuple(range(len(words.labels)))

    def word(self, label: object, *, where: str) -> str:
        """As `LabelWords`."""
        return self.manual.word(label, where=where)

    def whole(self, host: PromptHost, *, spaced: bool) -> list[list[int]] | None:
        """As `LabelWords`: a state is enough."""
        return None

    def save(self, folder: Path | str, host: PromptHost) -> None:
        """Writes what is trained with the fingerprint of the LM it belongs to.

        Raises: CheckpointError when it holds non-finite or huge numbers, or the folder cannot be written.
        """
        # A list, since JSON files are written with sorted keys and the order of labels is that of the vectors.
        config = {"words": [[label, list(words)] for label, words in self.manual.table.items()], **self._settings()}
        config |= {} if self.template is None else {"template": self.template}
        save_module(folder, self.state_dict(), config, lm_fingerprint=host.fingerprint, kind=self.KIND)

    def _settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _read(
        cls, folder: Path | str, host: PromptHost, allow_other_lm: bool
    ) -> tuple[Mapping[str, Tensor], dict[str, Any], Verbalizer]:
        tensors, config = load_module(
            folder, kind=cls.KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm
        )
        try:
            return tensors, config, Verbalizer(dict(config["words"]))
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{folder} holds no words of labels: {error}; save the verbalizer again") from error


class SoftVerbalizer(_LabelVectors):
    """vectors: [C, H'] where they begin; copied. words: the labels, and what demonstrations show"""

    KIND = "soft_verbalizer"

    def __init__(self, vectors: Tensor, words: Verbalizer) -> None:
        super().__init__(words)
        if vectors.ndim != 2 or vectors.shape[0] != len(self.labels):
            raise ShapeError(f"got vectors {list(vectors.shape)}; expected one for each of {len(self.labels)} labels")
        self.vectors = nn.Parameter(vectors.detach().to(torch.float32, copy=True))

    @classmethod
    def create(cls, host: PromptHost, words: Verbalizer, *, spaced: bool = True) -> "SoftVerbalizer":
        """Begins at the words' rows in the vocabulary layer. spaced: whether words follow a space in the template

        Raises: ConfigError for a word that the host cannot write.
        """
        ids = words.ids(host, spaced=spaced)
        rows = [vocabulary_rows(host, one).mean(dim=0) for one in ids]
        return cls(
            torch.stack(
                [
                    torch.stack([r for r, o in zip(rows, words.owners, strict=True) if o == c]).mean(dim=0)
                    for c in range(len(words.labels))
                ]
            ),
            words,
        )

    def from_states(self, host: PromptHost, states: Tensor, *, spaced: bool) -> Tensor:
        """As `LabelWords`."""
        return states.float() @ self.vectors.to(states.device).T

    @staticmethod
    def parameter_count(labels: int, width: int) -> int:
        """A vector a label."""
        return labels * width

    @classmethod
    def load(cls, folder: Path | str, host: PromptHost, *, allow_other_lm: bool = False) -> "SoftVerbalizer":
        """Reads what `save` wrote.

        Raises: CheckpointError when it is missing, damaged, or was trained for another LM.
        """
        tensors, config, words = cls._read(folder, host, allow_other_lm)
        made = cls(torch.zeros(len(words.labels), state_width(host)), words)
        fill_exactly(made, tensors, folder)
        made.template = config.get("template")
        return made


class PrototypicalVerbalizer(_LabelVectors):
    """width: D; size: H'; temperature: what cosines are divided by; seed: of the projection and the prototypes"""

    KIND = "prototypical_verbalizer"

    def __init__(
        self, words: Verbalizer, *, size: int, width: int = PROTOTYPE_WIDTH, temperature: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(words)
        if width < 1 or not temperature > 0:
            raise ConfigError(f"width is {width}, temperature {temperature}; expected at least 1 and above 0")
        generator = torch.Generator().manual_seed(seed)
        self.temperature = temperature
        self.projection = nn.Parameter(torch.randn(size, width, generator=generator) / size**0.5)
        self.prototypes = nn.Parameter(functional.normalize(torch.randn(len(self.labels), width, generator=generator)))

    @classmethod
    def create(
        cls,
        host: PromptHost,
        words: Verbalizer,
        *,
        width: int = PROTOTYPE_WIDTH,
        temperature: float = 0.1,
        seed: int = 0,
    ) -> "PrototypicalVerbalizer":
        """For a host. width: D"""
        return cls(words, size=state_width(host), width=width, temperature=temperature, seed=seed)

    def projected(self, states: Tensor) -> Tensor:
        """states [n, H'] -> [n, D] of length one."""
        return functional.normalize(states.float() @ self.projection.to(states.device), dim=1)

    def from_states(self, host: PromptHost, states: Tensor, *, spaced: bool) -> Tensor:
        """As `LabelWords`: cosines with the prototypes over the temperature."""
        prototypes = functional.normalize(self.prototypes.to(states.device), dim=1)
        return self.projected(states) @ prototypes.T / self.temperature

    @torch.no_grad()
    def fit_to(self, states: Tensor, places: Sequence[int]) -> None:
        """Prototypes become the means of their classes. places: of each state, the place of its label

        Raises: ConfigError for a label without an example.
        """
        missing = [label for place, label in enumerate(self.labels) if place not in set(places)]
        if missing:
            raise ConfigError(f"no example of {missing}, so they have no prototype; give at least one a label")
        index = torch.tensor(list(places), device=states.device)
        means = self.projected(states).new_zeros(self.prototypes.shape).index_add(0, index, self.projected(states))
        self.prototypes.copy_(functional.normalize(means, dim=1))

    def loss(self, states: Tensor, places: Sequence[int]) -> tuple[Tensor, int]:
        """Instance-instance plus instance-prototype contrast, summed over states; differentiable. Nats."""
        index = torch.tensor(list(places), device=states.device)
        vectors = self.projected(states)
        prototypes = functional.normalize(self.prototypes.to(states.device), dim=1)
        to_prototypes = functional.cross_entropy(vectors @ prototypes.T / self.temperature, index, reduction="sum")
        others = ~torch.eye(len(vectors), dtype=torch.bool, device=states.device)
        same = (index[:, None] == index) & others
        logits = (vectors @ vectors.T / self.temperature).masked_fill(~others, float("-inf"))
        logprobs = logits - logits.logsumexp(dim=1, keepdim=True)
        pairs = same.sum(dim=1).clamp_min(1)
        between = -(logprobs.masked_fill(~same, 0.0).sum(dim=1) / pairs).sum() if len(vectors) > 1 else 0.0
        return to_prototypes + between, len(vectors)

    @staticmethod
    def parameter_count(labels: int, size: int, width: int) -> int:
        """The projection H' x D and a prototype a label."""
        return size * width + labels * width

    def _settings(self) -> dict[str, Any]:
        return {"width": self.projection.shape[1], "temperature": self.temperature}

    @classmethod
    def load(cls, folder: Path | str, host: PromptHost, *, allow_other_lm: bool = False) -> "PrototypicalVerbalizer":
        """Reads what `save` wrote.

        Raises: CheckpointError when it is missing, damaged, or was trained for another LM.
        """
        tensors, config, words = cls._read(folder, host, allow_other_lm)
        try:
            made = cls.create(host, words, width=config["width"], temperature=config["temperature"])
        except (KeyError, TypeError, ConfigError, RuntimeError) as error:
            raise CheckpointError(f"{folder} has unusable settings {config}: {error}; save it again") from error
        fill_exactly(made, tensors, folder)
        made.template = config.get("template")
        return made


def vocabulary_rows(host: PromptHost, ids: Sequence[int]) -> Tensor:
    """[len(ids), H'] float32 on the CPU: what the head multiplies a state with for these tokens.

    It is the gradient of their logits, so that scales and ties of an architecture's head are in it.
    """
    with torch.enable_grad():
        state = torch.zeros(1, state_width(host), device=host.device, dtype=host.dtype, requires_grad=True)
        logits = head(host, state)[0]
        rows = [torch.autograd.grad(logits[token], state, retain_graph=True)[0][0] for token in ids]
    return torch.stack(rows).float().cpu()


def state_width(host: PromptHost) -> int:
    """H'"""
    layer = host.model.get_output_embeddings()
    return int(layer.weight.shape[1])
