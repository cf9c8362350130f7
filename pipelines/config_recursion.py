"""The config blocks of recursion, the frozen LM applied to its own output: as text (candidates and second pass), and as
vectors (connector, its pretraining, the pass-1 cache)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipelines.config_job import Job
from pipelines.config_reading import LM, Generation, Packing, SoftPrompt, Surface
from pipelines.config_retrieval import Corpus, Reranker, Retriever, check_corpus
from pipelines.config_text import PlainText
from pipelines.config_training import Evaluation, Loop, PromptTraining, Training
from pipelines.config_values import Block, Count, Name, Positive, Rate, Share
from pipelines.delimiters import split_template
from pipelines.errors import ConfigError

AnswerBy = Literal["second_pass", "majority", "best_score"]


class Candidates(Block):
    """What pass 1 of textual recursion samples: `n` answers a question. Samples of one `form` are one candidate:
    `answer` compares them as exact match does, `spelling` ignores case and white space only."""

    n: Positive = 8
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    form: Literal["answer", "spelling"] = "answer"

    @model_validator(mode="after")
    def _not_the_same_answer_n_times(self) -> Self:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(
                f"temperature 0 gives the same answer {self.n} times; raise temperature (0.7, for instance), or set "
                "n to 1"
            )
        return self


class SecondPass(Block):
    """What pass 2 reads, and its learned prompt. `none` stands in the slot where there is no candidate. Of a window
    with passages, `reserve` tokens are kept free for the candidates. `training` is its loop; without it the loop of
    pass 1."""

    prompt: SoftPrompt | None = SoftPrompt(name="second_pass_prompt")
    template: str = "question : {question} candidates : {candidates} answer :"
    separator: str = " ; "
    order: Literal["best_first", "best_last", "shuffled"] = "best_first"
    none: str = ""
    reserve: Count = 64
    training: Loop | None = None

    @model_validator(mode="after")
    def _readable(self) -> Self:
        try:
            found = [slot for _, slot in split_template(self.template, frozenset({"candidates", "question"}))]
        except ConfigError as error:
            raise ValueError(str(error)) from error
        for slot in ("candidates", "question"):
            if found.count(slot) != 1:
                raise ValueError(
                    f"second_pass.template {self.template!r} has the slot {{{slot}}} {found.count(slot)} times; "
                    "expected it once"
                )
        if not self.separator.strip():
            raise ValueError(f"second_pass.separator is {self.separator!r}; expected a visible sign, such as ' ; '")
        return self


def _rule_alone(value: Any) -> Any:
    return {"rule": value} if isinstance(value, str) else value


class When(Block):
    """Which questions recurse: all, or those whose first answer has a confidence below `threshold`. Without
    a threshold the one that training has tuned on dev is taken: the highest mean exact match less `price` times the
    share that pays, at most `max_share`. A rule alone may be written without the braces."""

    rule: Literal["always", "below_confidence"] = "always"
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    price: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_share: Share = 1.0

    @model_validator(mode="after")
    def _threshold_has_a_use(self) -> Self:
        if self.rule == "always" and self.threshold is not None:
            raise ValueError(f"threshold {self.threshold} is never looked at with rule always; leave one of them out")
        return self


WhenOrRule = Annotated[When, BeforeValidator(_rule_alone)]


class TextualTraining(PromptTraining):
    """Training of both prompts. The candidates that pass 2 learns on come from prompts that never saw their question:
    `folds` of them, each trained as pass 1 is."""

    folds: Annotated[int, Field(ge=2)] = 5


class PlainPrompt(Block):
    """The learned prompt of the plain pass that answers first where a second pass depends on it: one that a config of
    one pass (kind closed_book or frozen_reader) has trained in this workspace. `missing` is that of a prompt."""

    name: Name = "reader_prompt"
    length: Positive = 20
    position: Literal["prefix", "suffix"] = "suffix"
    missing: Literal["error", "zero_shot"] = "error"


class LastPassPrompt(SoftPrompt):
    """The learned prompt of the last pass. `start` names a trained soft prompt of this workspace to begin from, such
    as that of one pass."""

    name: Name = "last_pass_prompt"
    start: Name | None = None


class Connector(Block):
    """The trained blocks between two passes of the LM. `missing` says what happens where training finds no pretrained
    connector, or a pipeline no trained one: refuse, or begin with a new one, which changes nothing, and say so."""

    name: Name = "connector"
    passes: Annotated[int, Field(ge=2, le=16)] = 2
    shared: bool = True
    depth: Positive = 1
    width: Positive | None = None
    heads: Positive | None = None
    feed_forward: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    norm: Literal["rms", "layer"] = "rms"
    gate: Literal["channel", "scalar"] = "channel"
    missing: Literal["error", "untrained"] = "error"


class Pretraining(PlainText):
    """Language-model pretraining of the connector on plain text. Texts are read in blocks of `length` tokens;
    `dev_blocks` of them are held out and choose the best step. `name` is the module's folder in the workspace."""

    name: Name = "connector_pretrained"
    length: Positive = 128
    dev_blocks: Positive = 64
    learning_rate: Rate = 1e-3


class FirstPassCache(Block):
    """Where the states of pass 1 are kept while a connector is trained. `dtype: lm` is exact. Rows beyond
    `byte_budget` are run anew in every epoch, and counted."""

    kind: Literal["off", "disk"] = "disk"
    dtype: Literal["lm", "float32", "bfloat16", "float16"] = "lm"
    byte_budget: Count = 20_000_000_000


class NeuralTraining(Training):
    """Training of connector and prompt on packed contexts, in one loop. `prompt_learning_rate` is the peak rate of the
    prompt, which as a rule is far above a connector's; without it both learn at `learning_rate`. `unanswerable` and
    `add_gold` are those of a reader's training."""

    learning_rate: Rate = 1e-3
    prompt_learning_rate: Rate | None = None
    unanswerable: Literal["skip", "keep"] = "skip"
    add_gold: bool = False


def check_prompts(names: Sequence[str]) -> None:
    """Raises ValueError for two prompts of one name: the one that is trained last would replace the other."""
    if len(set(names)) < len(names):
        raise ValueError(f"both passes' prompts are called {names[0]!r}; give each a name of its own")


class Recursion(Job):
    """What both forms of recursion have. With a retriever the LM reads passages in every pass, as a frozen reader does;
    without one the book is closed."""

    corpus: Corpus | None = None
    retriever: Retriever | None = None
    retrieve_k: Positive = 100
    build_index: Literal["command", "on_first_use"] = "command"
    cache_retrieval: bool = False
    reranker: Reranker | None = None
    rerank_depth: Positive = 100
    rerank_k: Positive | None = None
    lm: LM
    packing: Packing = Packing()
    generation: Generation = Generation()
    surface: Surface = Surface()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _passages_where_needed(self) -> Self:
        if self.retriever is None and self.reranker is not None:
            raise ValueError("a reranker needs a retriever block; leave it out for closed-book questions")
        if self.retriever is not None:
            check_corpus(self.retriever, self.corpus)
        return self


class TextualRecursion(Recursion):
    """`kind: textual_recursion`: the frozen LM samples candidates, reads them with the question and answers. `prompt`
    is that of pass 1. `answer_by` majority or best_score chooses among the candidates without a second pass."""

    kind: Literal["textual_recursion"]
    prompt: SoftPrompt | None = None
    candidates: Candidates = Candidates()
    second_pass: SecondPass = SecondPass()
    when: WhenOrRule = When()
    answer_by: AnswerBy = "second_pass"
    training: TextualTraining | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.generation.num_beams != 1 or self.generation.do_sample:
            raise ValueError(
                "textual recursion answers greedily: leave generation.num_beams at 1 and do_sample at false; "
                "candidates.n and candidates.temperature are the sampling"
            )
        if self.when.rule != "always" and self.answer_by != "second_pass":
            raise ValueError(
                f"when: {self.when.rule} spares the second pass; answer_by {self.answer_by} has none, leave one out"
            )
        check_prompts([block.name for block in (self.prompt, self.second_pass.prompt) if block is not None])
        return self

    @property
    def reserved_tokens(self) -> int:
        """Tokens that packing leaves free beside the prompt: the candidates' among passages."""
        return self.second_pass.reserve if self.retriever is not None else 0


class NeuralRecursion(Recursion):
    """`kind: neural_recursion`: the frozen LM, a trained connector, and the same LM again. `prompt` stands in the last
    pass, `plain_prompt` in the plain one that answers first with `when` below_confidence; its answer is greedy."""

    kind: Literal["neural_recursion"]
    prompt: LastPassPrompt | None = None
    connector: Connector = Connector()
    when: WhenOrRule = When()
    plain_prompt: PlainPrompt | None = None
    pretraining: Pretraining | None = None
    first_pass_cache: FirstPassCache = FirstPassCache()
    training: NeuralTraining | None = None

    @model_validator(mode="after")
    def _prompts_apart(self) -> Self:
        check_prompts([block.name for block in (self.prompt, self.plain_prompt) if block is not None])
        if self.prompt is None and self.training is not None and self.training.prompt_learning_rate is not None:
            raise ValueError(
                f"training.prompt_learning_rate is {self.training.prompt_learning_rate}, but the config has no prompt "
                "block; leave one out, or add the other"
            )
        return self

    @property
    def reserved_tokens(self) -> int:
        """Tokens that packing leaves free beside the prompt: what the plain pass's has more, whether it runs or not, so
        that both rules read the same passages."""
        lengths = [block.length if block is not None else 0 for block in (self.prompt, self.plain_prompt)]
        return max(0, lengths[1] - lengths[0])
