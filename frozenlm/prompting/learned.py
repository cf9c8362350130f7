"""What is learned about one prompt: its template's soft slots, a verbalizer, or both, trained and saved together.

Soft words in a template with a verbalizer of words or of vectors: OpenPrompt (arXiv 2111.01998); the verbalizers: WARP
(2101.00121) and ProtoVerb (2203.09770), `learned_verbalizers.py`. Labels are learned by -log p(label); prototypes by
ProtoVerb's own contrast, which soft slots share then (our choice: the paper has no soft slots).
Shapes: B questions, C labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompting.classify import Prompt, filled_loss
from frozenlm.prompting.filled import Filled, PromptHost
from frozenlm.prompting.learned_verbalizers import PrototypicalVerbalizer, SoftVerbalizer
from frozenlm.prompting.scoring import answer_states
from frozenlm.prompting.soft_slots import SoftSlots, slot_length
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from frozenlm.saved_parts import check_parts, save_parts

Kind = Literal["words", "soft", "prototypical"]
VERBALIZERS: dict[str, Any] = {"soft": SoftVerbalizer, "prototypical": PrototypicalVerbalizer}


class LearnedPrompt(nn.Module):
    """slots: of the template; None where it has none. verbalizer: None for words

    Raises: ConfigError where there is neither, so nothing is learned.
    """

    def __init__(
        self, slots: SoftSlots | None, verbalizer: SoftVerbalizer | PrototypicalVerbalizer | None = None
    ) -> None:
        super().__init__()
        if slots is None and verbalizer is None:
            raise ConfigError(
                "nothing is learned about this prompt; give its template a {soft:id}, or make the verbalizer soft or "
                "prototypical"
            )
        self.slots, self.verbalizer = slots, verbalizer

    @classmethod
    def create(
        cls, host: PromptHost, template: Template, words: Verbalizer, *, verbalizer: Kind = "words", seed: int = 0
    ) -> "LearnedPrompt":
        """Before training: slots at real words, label vectors at the words' own.

        Raises: ConfigError where nothing is to be learned, an unknown verbalizer, or as the parts' own `create`.
        """
        if verbalizer != "words" and verbalizer not in VERBALIZERS:
            raise ConfigError(f"verbalizer is {verbalizer!r}; expected words, {', '.join(VERBALIZERS)}")
        slots = SoftSlots.create(host, template, seed=seed) if template.soft else None
        labels: SoftVerbalizer | PrototypicalVerbalizer | None = None
        if verbalizer == "soft":
            labels = SoftVerbalizer.create(host, words, spaced=template.spaced)
        elif verbalizer == "prototypical":
            labels = PrototypicalVerbalizer.create(host, words, seed=seed)
        for part in (slots, labels):
            if part is not None:
                part.template = str(template)
        return cls(slots, labels)

    def prompt(self, template: Template, words: Verbalizer, **settings: Any) -> Prompt:
        """The way to ask with what is learned. settings: others of `Prompt`"""
        return Prompt(template, words if self.verbalizer is None else self.verbalizer, slots=self.slots, **settings)

    def loss(
        self, host: PromptHost, prompt: Prompt, filled: Sequence[Filled], places: Sequence[int]
    ) -> tuple[Tensor, int]:
        """Summed over B questions, in nats, and B; what `frozenlm.training.fit` takes.

        prompt: of `prompt`; filled: by it; places: of each question, the place of its label among the verbalizer's

        Raises: ShapeError for a row that does not fit.
        """
        if isinstance(self.verbalizer, PrototypicalVerbalizer):
            with torch.set_grad_enabled(self.slots is not None and torch.is_grad_enabled()):
                states = answer_states(host, filled)
            return self.verbalizer.loss(states, places)
        return filled_loss(host, prompt, filled, places)

    def save(self, folder: Path | str, host: PromptHost) -> None:
        """Writes what there is, each part with the fingerprint of the LM it belongs to.

        Raises: CheckpointError when one holds non-finite or huge numbers, or the folder cannot be written.
        """
        save_parts(folder, dict(self.named_children()), host)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        host: PromptHost,
        template: Template,
        words: Verbalizer,
        *,
        verbalizer: Kind = "words",
    ) -> "LearnedPrompt":
        """Reads what `save` wrote, for this template, these labels and this kind of verbalizer.

        Files of earlier versions do not say the template; of these only the soft slots are compared.

        Raises: CheckpointError when it is missing, damaged, or was trained for another LM, template or labels.
        """
        folder, parts = Path(folder), ["slots"] * bool(template.soft) + ["verbalizer"] * (verbalizer != "words")
        check_parts(folder, parts)
        slots = SoftSlots.load(folder / "slots", host) if template.soft else None
        if slots is not None and set(slots.ids) != set(template.soft):
            raise CheckpointError(
                f"{folder} was trained for the soft slots {', '.join(slots.ids)}; the template has "
                f"{', '.join(template.soft)}; set it back, or train again"
            )
        for id_, slot in template.soft.items():
            if slots is not None and len(slots.of(id_)) != slot_length(host, slot):
                raise CheckpointError(
                    f"{folder} was trained with {len(slots.of(id_))} vectors in the soft slot {id_!r}; the "
                    f"template has {slot_length(host, slot)}; set it back, or train again"
                )
        labels = None if verbalizer == "words" else VERBALIZERS[verbalizer].load(folder / "verbalizer", host)
        for part in (slots, labels):
            if part is not None and part.template not in (None, str(template)):
                raise CheckpointError(
                    f"{folder} was trained in the template {part.template!r}, this one is {str(template)!r}; set it "
                    "back, or train again"
                )
        if labels is None:
            return cls(slots)
        if list(labels.labels) != list(words.labels):
            raise CheckpointError(
                f"{folder} tells {', '.join(labels.labels)} apart, the words are for {', '.join(words.labels)}; set "
                "them back, or train again"
            )
        return cls(slots, labels)
