"""The config blocks of prompting: how the frozen LM is asked as it is, with what is learned about the asking, if
anything; and its kind of config."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from frozenlm.prompting.grammar import pieces
from frozenlm.prompting.labels import word_table
from frozenlm.prompting.parts import Answer, Part, SoftSlot, as_text, from_data, from_slot, joined, merged, to_data
from frozenlm.prompting.parts import Field as Slot
from pipelines.config_job import Job
from pipelines.config_prompts import FrozenEncoder
from pipelines.config_reading import LM
from pipelines.config_tasks import TaskBlock, TaskEvaluation, TaskTraining, task_spec
from pipelines.config_values import Block, Device, DType, ModelName, Name, Positive, Rate
from pipelines.errors import ConfigError

NOTHING_TO_TRAIN = (
    "this config of kind prompting asks the frozen LM as it is: there is nothing to train; evaluate it, or ask; soft "
    "slots and the verbalizers soft and prototypical are trained"
)
RENDERED = "text"  # the field that a promptsource template's input is for the templates here
Text = Annotated[str, Field(min_length=1)]


def _written(value: Any) -> Any:
    """A template that is given as a list of parts, as text."""
    if not isinstance(value, list):
        return value
    try:
        parts = joined(from_data(part, f"part {number}") for number, part in enumerate(value))
    except ConfigError as error:
        raise ValueError(str(error)) from error
    for part in parts:
        if part == Slot("answer") or (isinstance(part, SoftSlot) and set(part.init or "") & set("{}")):
            raise ValueError(
                f"the part {to_data(part)} cannot be written as text; give a field called answer another name "
                "(task.fields), and begin soft slots at words without braces"
            )
    return as_text(parts)


_PARTS = Text | Annotated[list[dict[str, Any]], Field(min_length=1)]
TemplateText = Annotated[Text, BeforeValidator(_written, json_schema_input_type=_PARTS)]
"""A template as text; a list of its parts, as `Template.from_parts` takes, becomes text."""


class MaskedLM(Block):
    """The frozen masked LM: BERT, RoBERTa and their kin. `architecture` is as for an `lm`."""

    model: ModelName
    revision: str | None = None
    dtype: DType = "auto"
    device: Device = "auto"
    architecture: dict[str, Any] | None = None


class Demonstrations(Block):
    """Solved examples of the task's train split before the question (`frozenlm/prompting/demonstrations.py`): `k` of
    its records, or of `limit` of them that the config's seed draws. `budget` is in tokens, of all `k`; `over_budget:
    error` refuses a question that has no room for them. Which are nearest or diverse, the `encoder` says."""

    k: Positive = 4
    choose: Literal["random", "nearest", "diverse"] = "random"
    order: Literal["best_last", "best_first"] = "best_last"
    separator: str = "\n\n"
    budget: Positive | None = None
    over_budget: Literal["drop", "error"] = "drop"
    limit: Positive | None = None

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.limit is not None and self.limit < self.k:
            raise ValueError(f"limit is {self.limit}, so there are fewer than the k = {self.k} asked for; raise it")
        return self


class Contextual(Block):
    """Contextual calibration (arXiv 2102.09690): `texts` that say nothing stand in every field."""

    kind: Literal["contextual"]
    texts: Annotated[list[str], Field(min_length=1)] = ["N/A", "", "[MASK]"]
    demonstrations: bool = True


class PMI(Block):
    """Domain-conditional PMI (arXiv 2104.08315). `premise` stands before the answer; null takes what follows the
    template's last field."""

    kind: Literal["pmi"]
    premise: str | None = None
    demonstrations: bool = True


class PromptingInput(Block):
    """`max_tokens` is the most that a question may take with its template, demonstrations not counted: these have what
    is left of the window. A longer one is cut (`prompting.cut`), and counted."""

    max_tokens: Positive = 256


class Prompting(Block):
    """How to ask. `templates` have the task's fields and one `{answer}`; without any it is the task's own template with
    ` {answer}` behind it. One may also be a list of parts: `[{field: text}, {text: " is "}, {answer: true}]`. Of a
    promptsource task they have the field `text`, which is what its template writes, and its answer choices are labels
    and words. `words` gives each label of the task a word or several; without it they are the verbalizer's.
    `pieces` says how a word of several tokens is scored (`frozenlm/prompting/verbalizer.py`). Several templates are an
    `ensemble`, each with one of the `weights` where these are given. `cut` names the fields that give way where a
    record is too long, in order; `sentinel` has T5 answer at its sentinel. Soft slots of a template, as `{soft:id*4}`,
    are trained, and so is a `verbalizer` of label vectors: `soft` begins at the words (WARP, arXiv 2101.00121),
    `prototypical` compares with a prototype a label (ProtoVerb, 2203.09770)."""

    name: Name
    templates: list[TemplateText] = []
    cut: list[Text] = []
    sentinel: bool = False
    words: dict[str, str | list[str]] = {}
    pieces: Literal["logprob", "first", "mean", "max"] = "logprob"
    verbalizer: Literal["words", "soft", "prototypical"] = "words"
    demonstrations: Demonstrations | None = None
    calibration: Annotated[Contextual | PMI, Discriminator("kind")] | None = None
    ensemble: Literal["mean", "vote"] = "mean"
    weights: list[Rate] = []

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        try:
            for number, source in enumerate(self.templates):
                fields_of(source, f"templates.{number}")
                soft_slots(source, f"templates.{number}")
            if self.words:
                word_table(self.words, where="words", synonyms=True)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.weights and len(self.weights) != len(self.templates):
            raise ValueError(f"{len(self.weights)} weights for {len(self.templates)} templates; give one each, or none")
        if self.learns and len(self.templates) > 1:
            raise ValueError(f"what is learned belongs to one template, got {len(self.templates)}; leave one")
        return self

    @property
    def learns(self) -> bool:
        """Whether anything about it is trained."""
        return self.verbalizer != "words" or any(soft_slots(source, "template") for source in self.templates)

    @property
    def needs_encoder(self) -> bool:
        """Whether demonstrations are chosen by their vectors."""
        return self.demonstrations is not None and self.demonstrations.choose != "random"

    @property
    def draws(self) -> bool:
        """Whether the seed makes a difference."""
        shown = self.demonstrations
        return shown is not None and (shown.choose != "nearest" or shown.limit is not None)


def sources(block: Prompting, task: TaskBlock) -> list[str]:
    """The templates that a task is asked with."""
    own = task.template if task.promptsource is None else f"{{{RENDERED}}}"
    return block.templates or [f"{own} {{answer}}"]


def fields_of(source: str, name: str) -> tuple[str, ...]:
    """The fields of a template, in order of first use.

    Raises:
        ConfigError: a lone brace, an unknown slot, no field, or another number of answers than one.
    """
    parts = _parts(source, name)
    if (answers := sum(isinstance(part, Answer) for part in parts)) != 1:
        raise ConfigError(f"{name} {source[:60]!r} has {answers} slots {{answer}}; expected exactly one")
    found = tuple(dict.fromkeys(part.name for part in parts if isinstance(part, Slot)))
    if not found:
        raise ConfigError(f"{name} {source[:60]!r} has no {{field}}, so every record would read the same; add one")
    return found


def soft_slots(source: str, name: str) -> dict[str, SoftSlot]:
    """The soft slots of a template, by id.

    Raises:
        ConfigError: a lone brace, an unknown slot, or two descriptions of one id.
    """
    found: dict[str, SoftSlot] = {}
    for part in _parts(source, name):
        if isinstance(part, SoftSlot):
            found[part.id] = merged(found.get(part.id), part, name)
    return found


def _parts(source: str, name: str) -> list[Part]:
    return [piece if isinstance(piece, str) else from_slot(piece, name) for piece in pieces(source, name)]


def all_fields(block: Prompting, task: TaskBlock) -> tuple[str, ...]:
    """The fields that any template reads, in order of first use.

    Raises:
        ConfigError: as `fields_of`.
    """
    read = [fields_of(source, "template") for source in sources(block, task)]
    return tuple(dict.fromkeys(field for fields in read for field in fields))


def check_labels(block: Prompting, labels: list[str], *, whose: str) -> None:
    """Words, where the block has any, are for the task's labels.

    Raises:
        ConfigError: they are for others.
    """
    if block.words and set(block.words) != set(labels):
        known, given = (", ".join(map(repr, own)) for own in (labels, block.words))
        raise ConfigError(f"words are for the labels {given}; {whose} has {known}")


def check_prompting(block: Prompting, task: TaskBlock, *, encoder: bool, evaluation: TaskEvaluation) -> None:
    """What no block can check alone.

    Args:
        encoder: whether there is one.

    Raises:
        ValueError: a task without choices or without a template, a field that is not to be read or that no template
            has, words for other labels, demonstrations without train records or encoder, or a setting of no use. What
            the choices of a promptsource template are, is read with its file (`build_prompting.label_words`).
    """
    asks = f"prompting {block.name!r} on task {task.name!r}"
    spec = task_spec(task)
    if spec.metric != "accuracy" or (spec.words is None and task.promptsource is None):
        raise ValueError(
            f"{asks} needs a fixed set of choices; give the task a template with a verbalizer, or a promptsource "
            "template whose answer choices are the same for all records"
        )
    if task.promptsource is not None and task.promptsource.template == "all":
        raise ValueError(f"{asks} asks one task, and `all` makes one of each template; name one of them")
    try:
        fields = all_fields(block, task)
    except ConfigError as error:
        raise ValueError(f"{asks}: {error}") from error
    if task.promptsource is not None and fields != (RENDERED,):
        other = next(field for field in fields if field != RENDERED)
        raise ValueError(
            f"{asks}: a template reads {{{other}}}; of a promptsource task there is {{{RENDERED}}} alone, which is "
            "what its template writes"
        )
    if task.label in fields:
        raise ValueError(f"{asks}: a template reads {{{task.label}}}, which is the label itself; leave it out")
    if lost := [field for field in block.cut if field not in fields]:
        raise ValueError(f"{asks}: cut names {lost[0]!r}; the templates have the fields {', '.join(fields)}")
    if spec.words is not None:
        try:
            check_labels(block, list(spec.words.words), whose="the task's verbalizer")
        except ConfigError as error:
            raise ValueError(f"{asks}: {error}") from error
    if block.demonstrations is not None and task.train is None:
        raise ValueError(f"{asks}: demonstrations come from the task's train split; name its train records")
    if block.needs_encoder and not encoder:
        choose = block.demonstrations.choose if block.demonstrations is not None else ""
        raise ValueError(f"{asks}: demonstrations.choose {choose} needs an encoder block")
    if evaluation.normalize != "none":
        raise ValueError(
            f"{asks}: evaluation.normalize is {evaluation.normalize}, and prompting scores words as its own pieces "
            "says; leave it out"
        )


class PromptingJob(Job):
    """`kind: prompting`: the frozen LM as it is, asked for a label of one task. It is an `lm` or a `masked_lm`; the
    `encoder` chooses demonstrations. Where the prompting has something to learn, `training` says how."""

    kind: Literal["prompting"]
    lm: LM | None = None
    masked_lm: MaskedLM | None = None
    encoder: FrozenEncoder | None = None
    task: TaskBlock
    prompting: Prompting
    input: PromptingInput = PromptingInput()
    training: TaskTraining | None = None
    evaluation: TaskEvaluation = TaskEvaluation()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.lm is None) == (self.masked_lm is None):
            got = "none" if self.lm is None else "both"
            raise ValueError(f"prompting asks either an lm or a masked_lm, got {got}; name one of them")
        check_prompting(self.prompting, self.task, encoder=self.encoder is not None, evaluation=self.evaluation)
        if self.training is not None and not self.prompting.learns:
            raise ValueError(f"{NOTHING_TO_TRAIN}; or leave the training block out")
        return self
