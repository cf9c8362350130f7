"""The one pipeline from a record to its label.

    template filled -> word scores in the answer's place -> softmax over all words of all classes
        -> calibration -> mean over each class's words

    prompt = Prompt(Template.parse("{text} It was {answer}"), Verbalizer({"pos": "great", "neg": "bad"}))
    prompt.classify(lm, records)[0].label

Several prompts share a batch: `ensemble.py`. What is learned about a prompt (soft slots, a learned verbalizer) is
trained with `label_loss`. Shapes: C classes, W words.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from frozenlm.errors import ConfigError
from frozenlm.lm import BATCH_TOKENS
from frozenlm.prompting.calibration import Calibration, calibrated, class_means
from frozenlm.prompting.demonstrations import Demonstrations, check_shown
from frozenlm.prompting.filled import Filled, PromptHost
from frozenlm.prompting.labels import label_key
from frozenlm.prompting.scoring import LabelWords, Question, word_scores
from frozenlm.prompting.soft_slots import SoftSlots
from frozenlm.prompting.template import Template
from frozenlm.rows import Segment, row_length

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """label: the likeliest. probabilities: label -> share, summing to one. cut: tokens of the record that did not fit.
    dropped: demonstrations that did not."""

    label: str
    probabilities: Mapping[str, float]
    cut: int = 0
    dropped: int = 0


@dataclass(frozen=True, eq=False)
class Prompt:
    """One way to ask.

    template, verbalizer: what is read, and what may be answered
    slots: the template's soft slots
    demonstrations: solved examples in front
    calibration: what is taken off the answers
    max_tokens: the most columns of a row; None for what the host has
    question_tokens: the most of them without demonstrations; None for all
    """

    template: Template
    verbalizer: LabelWords
    slots: SoftSlots | None = None
    demonstrations: Demonstrations | None = None
    calibration: Calibration | None = None
    max_tokens: int | None = None
    question_tokens: int | None = None

    def fill(self, host: PromptHost, records: Sequence[Record]) -> list[Filled]:
        """What the host reads for each record. The record is fitted first; demonstrations take the room that is left,
        by the record or by the longest content-free text that they are to stand in front of too.

        Raises: as `Template.fill` and `Demonstrations.chosen`; ConfigError for a content-free text that does not fit.
        """
        room = self._room(host)
        blanks = self._blanks(host)
        own = min((limit for limit in (room, self.question_tokens) if limit is not None), default=None)
        places = [_place(n, record) for n, record in enumerate(records)]
        filled = [self._filled(host, self.template, *one, own) for one in zip(records, places, strict=True)]
        if self.demonstrations is None:
            return filled
        chosen = self.demonstrations.chosen(records, self.template)
        shown = self.demonstrations.shown(host, self.template, self.verbalizer)
        behind = self.calibration is not None and self.calibration.demonstrations
        nothing = max((self._columns(host, blank) for blank in blanks), default=0) if behind else 0
        found = []
        for one, ranked, where in zip(filled, chosen, places, strict=True):
            asked = self._columns(host, one)
            left = None if room is None else room - max(asked, nothing)
            name = where if asked >= nothing else f"{where}, asked about nothing"
            prefix, dropped = shown.prefix(ranked, left, where=name)
            found.append(replace(one, prefix=prefix, dropped=dropped))
        return found

    def classify(
        self, host: PromptHost, records: Sequence[Record], *, batch_tokens: int = BATCH_TOKENS
    ) -> list[Prediction]:
        """The label of each record. batch_tokens: the most tokens of a batch

        Raises: as `fill`; ConfigError for a word that the host cannot write, and as `check_shown`.
        """
        with torch.no_grad():
            filled = self.fill(host, records)
            check_shown(filled)
            found = probabilities(host, [(self, one) for one in filled], batch_tokens=batch_tokens)
        return [prediction(self.verbalizer.labels, *pair) for pair in zip(found, filled, strict=True)]

    def blanks(self, host: PromptHost, filled: Filled) -> list[Filled]:
        """The questions about nothing that belong to a question: with the same demonstrations, or with none.

        Raises: ConfigError for one that does not fit.
        """
        behind = self.calibration is not None and self.calibration.demonstrations
        return self._blanks(host, filled.prefix if behind else ())

    def _blanks(self, host: PromptHost, prefix: tuple[Segment, ...] = ()) -> list[Filled]:
        """Uncut, since a content-free text with a piece missing would be another one."""
        if self.calibration is None:
            return []
        room, found = self._room(host), []
        for template, record in self.calibration.blanks(self.template):
            one = replace(self._filled(host, template, record, "content-free input", sys.maxsize), prefix=prefix)
            needed, shown = self._columns(host, one), row_length(prefix)
            if room is not None and needed > room:
                text = "".join(f" {value!r:.40}" for value in list(record.values())[:1])
                raise ConfigError(
                    f"calibration: {template.name}{text} takes {needed} tokens, {shown} of them demonstrations; the "
                    f"room is {room}; take a shorter premise or content-free text, fewer demonstrations, or more "
                    "max_tokens"
                )
            found.append(one)
        return found

    def _filled(
        self, host: PromptHost, template: Template, record: Record, where: str, room: int | None = None
    ) -> Filled:
        return template.fill(
            record,
            host,
            slots=self.slots,
            max_tokens=self.max_tokens if room is None else room,
            reserve=self._reserve(host, template.spaced),
            where=where,
        )

    def _columns(self, host: PromptHost, filled: Filled) -> int:
        """Of the row with its longest word."""
        return filled.length + self._reserve(host, filled.spaced)

    def _room(self, host: PromptHost) -> int | None:
        return host.window if self.max_tokens is None else self.max_tokens

    def _reserve(self, host: PromptHost, spaced: bool) -> int:
        """Columns that the longest word takes beyond its first token."""
        words = None if host.kind == "encoder-decoder" else self.verbalizer.whole(host, spaced=spaced)
        return 0 if words is None else max(map(len, words)) - 1


def _place(number: int, record: Record) -> str:
    """What messages call a record: its id where it has one."""
    return f"record {record.get('id', number)}" if isinstance(record, Mapping) else f"record {number}"


def probabilities(
    host: PromptHost, asked: Sequence[tuple[Prompt, Filled]], *, batch_tokens: int = BATCH_TOKENS
) -> list[Tensor]:
    """[C] probabilities of the labels for each question, as `log_probabilities`."""
    return [one.exp() for one in log_probabilities(host, asked, batch_tokens=batch_tokens)]


def log_probabilities(
    host: PromptHost,
    asked: Sequence[tuple[Prompt, Filled]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    calibrate: bool = True,
) -> list[Tensor]:
    """[C] log-probabilities (nats) of the labels for each question of any prompts, in common batches; differentiable.

    calibrate: False leaves the prompts' calibration out, as training does

    Raises: as `word_scores`, `Prompt.blanks` and `calibrated`.
    """
    questions = [Question(filled, prompt.verbalizer) for prompt, filled in asked]
    blank_places: dict[Any, list[int]] = {}
    keys = []
    for prompt, filled in asked:
        same = prompt.calibration is None or not prompt.calibration.demonstrations
        key = (id(prompt), *(() if same else (getattr(segment, "ids", id(segment)) for segment in filled.prefix)))
        keys.append(key)
        if calibrate and key not in blank_places:
            blanks = prompt.blanks(host, filled)
            blank_places[key] = list(range(len(questions), len(questions) + len(blanks)))
            questions += [Question(one, prompt.verbalizer) for one in blanks]
    scores = [one.log_softmax(dim=0) for one in word_scores(host, questions, batch_tokens=batch_tokens)]
    found = []
    for (prompt, _), key, one in zip(asked, keys, scores, strict=False):
        places = blank_places.get(key)
        if places:
            one = calibrated(one, torch.stack([scores[place] for place in places]))
        found.append(class_means(one, prompt.verbalizer.owners, len(prompt.verbalizer.labels)))
    return found


def label_loss(
    host: PromptHost, prompt: Prompt, records: Sequence[Record], *, label: str = "label"
) -> tuple[Tensor, int]:
    """The loss that `frozenlm.training.fit` takes: the sum of -log p(label) in nats, uncalibrated, and its terms.

    label: the field that holds the label

    Raises: ConfigError for a record without a label that the verbalizer knows; as `Prompt.fill`.
    """
    wanted = [label_place(record, label, prompt.verbalizer.labels, f"record {n}") for n, record in enumerate(records)]
    return filled_loss(host, prompt, prompt.fill(host, records), wanted)


def filled_loss(
    host: PromptHost, prompt: Prompt, filled: Sequence[Filled], places: Sequence[int]
) -> tuple[Tensor, int]:
    """As `label_loss`, for questions that are filled already.

    places: of each question, the place of its label among the verbalizer's
    """
    found = log_probabilities(host, [(prompt, one) for one in filled], calibrate=False)
    losses = [-one[place] for one, place in zip(found, places, strict=True)]
    return torch.stack(losses).sum(), len(losses)


def accuracy(predictions: Sequence[Prediction], records: Sequence[Record], *, label: str = "label") -> float:
    """Share of records whose label was found.

    Raises: ConfigError for other than one prediction a record, no records, or a record without a label.
    """
    if not records or len(predictions) != len(records):
        raise ConfigError(f"{len(predictions)} predictions for {len(records)} records; expected one each, at least one")
    wanted = [_label(record, label, f"record {n}") for n, record in enumerate(records)]
    return sum(one.label == key for one, key in zip(predictions, wanted, strict=True)) / len(wanted)


def label_place(record: Record, field: str, labels: Sequence[str], where: str) -> int:
    """The place of a record's label among the labels.

    Raises: ConfigError for a record without a label, or with one that is not known.
    """
    key = _label(record, field, where)
    if key not in labels:
        raise ConfigError(f"{where} has the label {key!r}; the verbalizer knows {', '.join(map(repr, labels))}")
    return list(labels).index(key)


def _label(record: Record, field: str, where: str) -> str:
    if field not in record:
        raise ConfigError(f"{where} has no field {field!r}; it has {', '.join(map(str, record))}")
    return label_key(record[field], where=where)


def prediction(labels: Sequence[str], found: Tensor, filled: Filled) -> Prediction:
    """The likeliest label; the first of several that are equally likely."""
    shares = found.tolist()
    best = max(range(len(labels)), key=shares.__getitem__)
    return Prediction(labels[best], dict(zip(labels, shares, strict=True)), filled.cut, filled.dropped)
