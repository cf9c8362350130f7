"""The config of a search for a template and for words, with the frozen LM as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipelines.config_job import Job
from pipelines.config_prompting import (
    MaskedLM,
    Prompting,
    PromptingInput,
    PromptingJob,
    TemplateText,
    Text,
    all_fields,
    fields_of,
    soft_slots,
    sources,
)
from pipelines.config_prompts import FrozenEncoder
from pipelines.config_reading import LM
from pipelines.config_tasks import TaskBlock, TaskEvaluation, task_spec
from pipelines.config_values import Block, ModelName, Positive
from pipelines.errors import ConfigError

LEARNED = "which would have to be trained; a search scores the LM as it is"


class ProposeTemplates(Block):
    """A T5 writes `n` more templates (LM-BFF, arXiv 2012.15723): the likeliest of `beams` beams of at most `max_tokens`
    tokens, between `records` train records and their words. Only for tasks with one field."""

    model: ModelName
    revision: str | None = None
    n: Positive = 5
    beams: Positive = 20
    records: Positive = 16
    max_tokens: Annotated[int, Field(ge=2, le=2**10)] = 20


class ProposeWords(Block):
    """For each label the `n` words that the LM itself finds likeliest in the first template's answer, over `records`
    train records of all labels."""

    n: Positive = 5
    records: Positive = 64


class Search(Block):
    """What is tried: `templates` and, for each label, `words`, beside those of the prompting block, which come first;
    where neither says anything, the task's own. At most `trials` candidates are drawn by the config's seed, and each is
    scored on at most `limit` dev records, which it draws too, the same for all."""

    templates: list[TemplateText] = []
    words: dict[str, Annotated[list[Text], Field(min_length=1)]] = {}
    propose_templates: ProposeTemplates | None = None
    propose_words: ProposeWords | None = None
    trials: Positive = 50
    limit: Positive = 100

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        try:
            for number, source in enumerate(self.templates):
                fields_of(source, f"templates.{number}")
                if soft := list(soft_slots(source, f"templates.{number}")):
                    raise ConfigError(
                        f"templates.{number} has the soft slot {soft[0]!r}, {LEARNED}; write words instead"
                    )
        except ConfigError as error:
            raise ValueError(str(error)) from error
        for label, own in self.words.items():
            if not all(word.strip() for word in own):
                raise ValueError(f"words: one for {label!r} is blank; expected text")
        return self


class PromptSearch(Job):
    """`kind: prompt_search`: which template and which word a label get the most dev records right, with the frozen `lm`
    or `masked_lm` as it is. `prompting` says how every candidate is asked, and holds the first; what is found is a
    config of kind `prompting`, with this one's other blocks."""

    kind: Literal["prompt_search"]
    lm: LM | None = None
    masked_lm: MaskedLM | None = None
    encoder: FrozenEncoder | None = None
    task: TaskBlock
    prompting: Prompting
    input: PromptingInput = PromptingInput()
    search: Search
    evaluation: TaskEvaluation = TaskEvaluation()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        asks = f"the search on task {self.task.name!r}"
        if self.task.promptsource is not None:
            raise ValueError(
                f"{asks} chooses words for the labels of a verbalizer; give the task a template with a verbalizer in "
                "the place of promptsource"
            )
        if self.prompting.learns:
            raise ValueError(f"{asks}: prompting has a soft slot or a soft or prototypical verbalizer, {LEARNED}")
        if self.prompting.weights or "ensemble" in self.prompting.model_fields_set:
            raise ValueError(
                f"{asks} scores one template at a time; leave prompting.ensemble and prompting.weights out"
            )
        try:
            self.job(self._given, self.first_words)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        known = list(self.words)
        if lost := sorted((set(self.prompting.words) | set(self.search.words)) - set(known)):
            raise ValueError(f"{asks}: words has {lost[0]!r}; the labels are {', '.join(map(repr, known))}")
        if self.task.dev is None:
            raise ValueError(f"{asks} scores candidates on the task's dev split; name its dev records")
        self._check_proposals(asks)
        return self

    def _check_proposals(self, asks: str) -> None:
        block = self.search
        proposed = [name for name in ("propose_templates", "propose_words") if getattr(block, name) is not None]
        if proposed and self.task.train is None:
            raise ValueError(f"{asks}: {proposed[0]} reads the task's train split; name its train records")
        fields = all_fields(self.prompting.model_copy(update={"templates": self._given}), self.task)
        if block.propose_templates is not None and len(fields) > 1:
            raise ValueError(
                f"{asks}: propose_templates writes templates for one field, and these have {', '.join(fields)}; leave "
                "it out"
            )
        if not proposed and len(self.templates) == 1 and all(len(own) == 1 for own in self.words.values()):
            raise ValueError(
                f"{asks} has one template and one word a label, so there is nothing to choose; add search.templates or "
                "search.words, or have some proposed"
            )

    @property
    def _given(self) -> list[str]:
        return list(dict.fromkeys([*self.prompting.templates, *self.search.templates]))

    @property
    def templates(self) -> list[str]:
        """The candidates, the config's first choice first; what a T5 proposes is not among them."""
        return self._given or sources(self.prompting, self.task)

    @property
    def words(self) -> dict[str, list[str]]:
        """Label -> candidates, the config's first choice first; what the LM proposes is not among them."""
        words = task_spec(self.task).words
        found = {}
        for label, word in (words.words if words is not None else {}).items():
            own = self.prompting.words.get(label, [])
            given = [*([own] if isinstance(own, str) else own), *self.search.words.get(label, [])]
            found[label] = list(dict.fromkeys(given)) or [word]
        return found

    @property
    def first_words(self) -> dict[str, str]:
        """Label -> the config's first choice."""
        return {label: own[0] for label, own in self.words.items()}

    def job(self, templates: Sequence[str], words: Mapping[str, str]) -> PromptingJob:
        """The config that asks with these templates and words.

        Raises:
            ConfigError: as the checks of a config of kind `prompting` say.
        """
        own = self.prompting.model_dump(exclude={"templates", "words", "weights", "ensemble"}, exclude_unset=True)
        parts = {
            name: getattr(self, name)
            for name in ("lm", "masked_lm", "encoder", "task", "input", "evaluation", "seed", "workspace")
        }
        try:
            prompting = Prompting(**own, templates=list(templates), words={label: words[label] for label in self.words})
            return PromptingJob(kind="prompting", prompting=prompting, **parts)
        except ValidationError as error:
            raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
