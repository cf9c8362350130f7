"""The config blocks of training on plain text: where it comes from, and the pre-training of soft prompts on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.config_prompts import LowRank, OnePrompt, PromptPerTask, PTuning
from pipelines.config_reading import FromModule
from pipelines.config_retrieval import Corpus
from pipelines.config_training import Loop
from pipelines.config_values import LocalPath, Name, Positive, Rate
from pipelines.delimiters import split_template
from pipelines.errors import ConfigError

BEGIN_FROM_VECTORS = (OnePrompt, PromptPerTask, LowRank, PTuning)
"""The prompts that can begin at a soft prompt that was trained on text."""


class PlainText(Loop):
    """Training on plain text: `files` and the passages of a `corpus`. A file's texts are parted by blank lines, by
    lines, or not at all; a file of JSON lines holds one text a line under `text`."""

    files: list[LocalPath] = []
    parted_by: Literal["blank_line", "line", "nothing"] = "blank_line"
    corpus: Corpus | None = None
    passage: str = "{text}"

    @model_validator(mode="after")
    def _some_text(self) -> Self:
        if not self.files and self.corpus is None:
            raise ValueError("pretraining needs text: name files, a corpus, or both")
        try:
            slots = [slot for _, slot in split_template(self.passage, frozenset({"title", "text"}))]
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if "text" not in slots:
            raise ValueError(f"pretraining.passage needs the slot {{text}}, got {self.passage!r}")
        return self


class PromptPretraining(PlainText):
    """Pre-training of a soft prompt on plain text (PPT, arXiv 2109.04332), with the length, position and init of the
    config's `prompt`, whose training then begins from it. `continuation`: of every window of `context` + `answer`
    tokens the last ones are predicted, 32 if not said. `next_sentence`: does a sentence follow another, come from the
    same text, or from another; asked as `wording` says, and answered with `labels`. `dev_examples` are held out and
    choose the best step. `name` is the module's folder in the workspace."""

    name: Name = "prompt_pretrained"
    objective: Literal["continuation", "next_sentence"] = "continuation"
    context: Positive = 64
    answer: Positive | None = None
    wording: Annotated[str, Field(min_length=1)] | None = None
    labels: Annotated[list[str], Field(min_length=3, max_length=3)] | None = None
    dev_examples: Positive = 64
    learning_rate: Rate = 0.02

    @model_validator(mode="after")
    def _of_use(self) -> Self:
        given = [name for name in ("wording", "labels") if getattr(self, name) is not None]
        if self.objective == "continuation" and given:
            raise ValueError(f"pretraining.{given[0]} is for next_sentence, the objective here is continuation")
        if self.objective == "next_sentence" and self.answer is not None:
            raise ValueError(
                "pretraining.answer is for continuation, the objective here is next_sentence; leave it out"
            )
        return self

    def wanted(self) -> dict[str, Any]:
        """What `text_examples` takes, by name."""
        names = {"objective", "context", "answer", "wording", "labels"}
        return self.model_dump(include=names, exclude_none=True)


def check_pretraining(block: PromptPretraining | None, prompt: Any, delta: Any, modules: list[Any]) -> None:
    """What no block can check alone.

    Raises:
        ValueError: no prompt that could begin from what is pretrained, or a name that is taken.
    """
    if block is None:
        return
    if prompt is None:
        what = "trains no prompt" if delta is None else f"trains a delta of kind {delta.kind}"
        raise ValueError(f"pretraining is for prompts, and this config {what}; leave it out, or add a prompt block")
    begins = isinstance(prompt, BEGIN_FROM_VECTORS)
    if isinstance(prompt, PTuning):
        begins = prompt.anchor and prompt.position != "around"
    if not begins:
        raise ValueError(
            f"pretraining makes one run of soft tokens, at which prompt {prompt.name!r} of kind {prompt.kind} does not "
            "begin; it is for soft_prompt, task_prompts, low_rank, and p_tuning with an anchor, not around the text"
        )
    if block.name in [prompt.name, *(module.name for module in modules)]:
        raise ValueError(f"pretraining.name is {block.name!r}, which another module has; give it a name of its own")
    if isinstance(prompt.init, FromModule) and prompt.init.name == block.name:
        raise ValueError(
            f"prompt.init is the module {block.name!r}, which pretraining is to make; leave init out: training begins "
            "from what was pretrained anyway"
        )
