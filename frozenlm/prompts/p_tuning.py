"""P-tuning: Liu et al. 2021, "GPT Understands, Too", arXiv 2103.10385, section 3.2.

Soft tokens stand at the places of a template, [P1; x; P2; y; P3], and are not free vectors: a prompt encoder writes
them, which ties them to each other. Its shapes are those of the authors' code, h being H:

    lama      LSTM(h, h // 2, 2 layers, both directions) -> Linear(h, h), ReLU, Linear(h, h)
    fewshot   LSTM(h, h, 2 layers, both directions)      -> Linear(2h, h), ReLU, Linear(h, h)
    mlp       Linear(h, h), ReLU, Linear(h, h)

over an embedding [P, h] drawn from N(0, 1). After training the encoder is dropped: `collapse()` gives the vectors it
writes, bit for bit, and they are all that serving needs.

Our choice: with `anchor`, the default, the encoder writes what is added to a fixed initial prompt, and its last layer
starts at zero, so training begins at exactly that prompt (initialisation decides much, see `initializers.py`).
`anchor=False` is the authors' form, which begins wherever the random encoder happens to write.
Shapes: P soft tokens of all slots together, H hidden size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.constant import ConstantPrompt
from frozenlm.prompts.initializers import Initializer
from frozenlm.prompts.interface import Place, PromptInput
from frozenlm.prompts.saved import SavedPrompt, fill_exactly
from frozenlm.prompts.slots import Slots, SlottedPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt, check_width
from frozenlm.rows import Row

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "p_tuning"
Form = Literal["lama", "fewshot", "mlp"]


class PTuning(ConstantPrompt, SavedPrompt):
    """Soft tokens in the slots of a template, written by a prompt encoder.

    hidden_size: H
    slots: soft tokens before the context, between its pieces and behind it (`slots.py`)
    form: of the prompt encoder
    anchor: [P, H] to which the encoder adds; copied, and frozen. None: the encoder writes the prompt itself
    seed: of embedding and encoder

    Raises: ConfigError for bad slots, an unknown form, or an odd H with `lama`; ShapeError for an anchor that is not
        [P, H].
    """

    KIND = KIND
    anchor: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        slots: Sequence[int],
        *,
        form: Form = "lama",
        anchor: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_form(form, hidden_size)
        self.slots, self.form, self.hidden_size = Slots(tuple(slots)), form, hidden_size
        if anchor is not None and anchor.shape != (self.length, hidden_size):
            raise ShapeError(f"the anchor is {list(anchor.shape)}; expected [P, H] = [{self.length}, {hidden_size}]")
        self.register_buffer("anchor", None if anchor is None else SoftPrompt(anchor).vectors.detach())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Parameter(torch.randn(self.length, hidden_size))
            self.lstm = None if form == "mlp" else _lstm(hidden_size, form)
            self.head = _head(hidden_size, form)
        if anchor is not None:
            for part in list(self.head.parameters())[-2:]:  # weight and bias of the last layer
                nn.init.zeros_(part)

    @classmethod
    def create(
        cls,
        lm: "FrozenLM",
        slots: Sequence[int],
        *,
        form: Form = "lama",
        anchor: bool = True,
        init: Initializer | None = None,
        seed: int = 0,
    ) -> "PTuning":
        """A new module for an LM; the same seed gives the same one, and one that begins as the soft prompt of it.

        slots: e.g. (0, 20) behind the context, (10, 10) around it
        anchor: False leaves the initial prompt out (the authors' form)
        init: of the anchor, from `frozenlm.prompts.initializers`; sampled vocabulary by default

        Raises: ConfigError for a bad setting, or an init without an anchor; what the initialiser raises.
        """
        length = Slots(tuple(slots)).length
        if not anchor and init is not None:
            raise ConfigError(
                "P-tuning without an anchor begins where its encoder writes; leave init out, or anchor it"
            )
        start = SoftPrompt.create(lm, length, init=init, seed=seed).vectors if anchor else None
        return cls(lm.hidden_size, slots, form=form, anchor=start, seed=seed)

    @staticmethod
    def parameter_count(*, length: int, hidden_size: int, form: Form = "lama") -> int:
        """The embedding P x h, the LSTM and the two linear layers; the anchor is not trained."""
        h = hidden_size
        state = {"lama": h // 2, "fewshot": h, "mlp": 0}[form]  # of the LSTM, in one direction
        layers = [4 * state * (width + state + 2) for width in (h, 2 * state)] if state else []
        return length * h + 2 * sum(layers) + (2 * state or h) * h + h + h * h + h

    @property
    def position(self) -> Place:
        """Where the slots are."""
        return self.slots.position

    @property
    def length(self) -> int:
        """P."""
        return self.slots.length

    def forward(self) -> Tensor:
        """[P, H]"""
        hidden = self.embedding
        if self.lstm is not None:
            # On a CPU the LSTM with gradient and the one without differ in the last bits: always the one with.
            with torch.enable_grad():
                states = self.lstm(hidden)[0]
            hidden = states if torch.is_grad_enabled() else states.detach()
        written: Tensor = self.head(hidden).float()
        return written if self.anchor is None else self.anchor + written

    def rows(self, contexts: Sequence[Row], inputs: Sequence[PromptInput]) -> list[Row]:
        """The rows in which the LM reads contexts with the vectors in their slots."""
        return self.slots.rows(self(), contexts)

    @torch.no_grad()
    def collapse(self) -> SlottedPrompt:
        """The vectors alone, in the same slots: what is served after training."""
        return SlottedPrompt(self(), self.slots.sizes)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"slots={self.slots.sizes}, form={self.form!r}, anchor={self.anchor is not None}"

    def settings(self) -> dict[str, Any]:
        """Slots, form and width."""
        return {"slots": list(self.slots.sizes), "form": self.form, "hidden_size": self.hidden_size}

    @classmethod
    def from_saved(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], lm: "FrozenLM", where: Path | str
    ) -> Self:
        """As `SavedPrompt.from_saved`."""
        embedding, slots, form = tensors.get("embedding"), config.get("slots"), config.get("form")
        if embedding is None or not isinstance(slots, list) or form is None or form not in get_args(Form):
            raise CheckpointError(f"{where} holds {sorted(tensors)} with {config}; expected a P-tuning module")
        check_width(embedding, lm, where)
        module = cls(lm.hidden_size, slots, form=form, anchor=tensors.get("anchor"))
        fill_exactly(module, tensors, where)
        return module


def _lstm(hidden_size: int, form: Form) -> nn.LSTM:
    state = hidden_size // 2 if form == "lama" else hidden_size
    return nn.LSTM(hidden_size, state, num_layers=2, bidirectional=True)


def _head(hidden_size: int, form: Form) -> nn.Sequential:
    width = 2 * hidden_size if form == "fewshot" else hidden_size
    return nn.Sequential(nn.Linear(width, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size))


def _check_form(form: Form, hidden_size: int) -> None:
    if form not in get_args(Form):
        raise ConfigError(f"P-tuning: form is {form!r}; expected one of {get_args(Form)}")
    if form == "lama" and hidden_size % 2:
        raise ConfigError(f"P-tuning: form lama halves the hidden size, which is {hidden_size}; use fewshot or mlp")
