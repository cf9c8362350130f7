"""What a soft prompt is trained for: the answer, given what the LM has read.

The loss of prompt tuning (arXiv 2104.08691, section 2) is -log p(answer | prompt, context), the mean over answer
tokens; only the answer is learned from. Where the prompt stands decides what a step costs:

    prefix             row [prompt, context, answer]; the whole row runs forward and backward
    suffix             the context is read without gradient, the step runs over [prompt, answer] on top of its memory
    encoder-decoder    the encoder reads prompt and context in the prompt's order, the decoder is asked for the answer

The gradient is the same as that of the plain forward pass over the whole row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from frozenlm.context_cache import ContextCache
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.prompts.interface import PromptInput, PromptModule, prompted
from frozenlm.rows import Row, Tokens

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM


Unit = Literal["token", "example"]


@dataclass(frozen=True)
class Example:
    """One thing to learn.

    context: ids of everything before the answer, the question and opening tokens included
    answer: ids to predict, the token that ends an answer included
    source: what a prompt is written from, for methods that look at it
    cuts: places in the context, in order, where a prompt with slots inside the context may stand

    Raises: ShapeError when there is no answer to learn from, or for cuts out of order or outside the context.
    """

    context: tuple[int, ...]
    answer: tuple[int, ...]
    source: PromptInput = field(default=PromptInput())
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "context", tuple(self.context))
        object.__setattr__(self, "answer", tuple(self.answer))
        if self.cuts and [0, *self.cuts, len(self.context)] != sorted([0, *self.cuts, len(self.context)]):
            raise ShapeError(f"cuts are {self.cuts}; expected rising places in a context of {len(self.context)} tokens")
        if not self.answer:
            raise ShapeError("an example has an empty answer, so there is nothing to learn from; leave it out")

    @classmethod
    def of(cls, context: Iterable[int], answer: Iterable[int], source: PromptInput | None = None) -> "Example":
        """From any two runs of ids."""
        return cls(tuple(context), tuple(answer), source or PromptInput())

    @property
    def row(self) -> Row:
        """The context, one segment a piece."""
        ends = (*self.cuts, len(self.context))
        return [Tokens.of(self.context[start:end]) for start, end in zip((0, *self.cuts), ends, strict=True)]

    @property
    def length(self) -> int:
        """Tokens of context and answer together."""
        return len(self.context) + len(self.answer)


def prompt_loss(
    lm: "FrozenLM",
    prompt: PromptModule | None,
    examples: Sequence[Example],
    memory_cache: ContextCache | None = None,
    *,
    unit: Unit = "token",
) -> tuple[Tensor, int]:
    """The loss that `frozenlm.training.fit` takes: the sum over units of -log p in nats, and the number of units.

    prompt: None measures the LM as it is
    memory_cache: keeps what the LM has read of each context; used by suffix prompts on decoder-only LMs, else without
        effect, since no other form has a context that stays constant
    unit: "token" sums over answer tokens; "example" sums the mean of each answer, so that in a mixture of tasks a long
        text weighs no more than a label (our choice)

    Raises: ShapeError when an example does not fit the LM's window; ConfigError for a cache of another LM.
    """
    logprobs = _answer_logprobs(lm, prompt, examples, memory_cache)
    if unit == "example":
        return -torch.stack([one.mean() for one in logprobs]).sum(), len(examples)
    return -torch.cat(logprobs).sum(), sum(map(len, logprobs))


def _answer_logprobs(
    lm: "FrozenLM", prompt: PromptModule | None, examples: Sequence[Example], memory_cache: ContextCache | None
) -> list[Tensor]:
    answers = [list(example.answer) for example in examples]
    sources = [example.source for example in examples]
    if prompt is None or not reads_context_once(lm, prompt):
        return lm.token_logprobs(prompted(prompt, [example.row for example in examples], sources), answers)
    cache = memory_cache or ContextCache(lm, kind="off")
    if cache.lm is not lm:
        raise ConfigError("the context cache belongs to another FrozenLM; make it with the LM that is trained")
    memory = cache.memory([example.context for example in examples])
    return lm.token_logprobs([[segment] for segment in prompt.segments(sources)], answers, memory=memory)


def reads_context_once(lm: "FrozenLM", prompt: PromptModule) -> bool:
    """Whether the LM's reading of a context stays the same while the prompt, and nothing else, is trained."""
    return prompt.position == "suffix" and lm.kind == "decoder" and not lm.is_changed


@torch.no_grad()
def mean_loss(
    lm: "FrozenLM",
    prompt: PromptModule | None,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    memory_cache: ContextCache | None = None,
) -> float:
    """Mean -log p an answer token, in nats, over all examples; examples of like length share a batch.

    Raises: ConfigError without an example; as `prompt_loss`.
    """
    if not examples:
        raise ConfigError("mean_loss was given no example; expected at least one")
    ordered = sorted(examples, key=lambda example: example.length)
    total, units = 0.0, 0
    for start in range(0, len(ordered), batch_size):
        value, count = prompt_loss(lm, prompt, ordered[start : start + batch_size], memory_cache)
        total, units = total + float(value), units + count
    return total / units
