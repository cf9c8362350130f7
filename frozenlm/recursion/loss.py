"""What the connector, and the prompt of the last pass, are trained for: the answer, given what the LM has read.

The loss of `frozenlm/lm_tasks.py` through all passes of a `RecursiveLM` (arXiv 2204.10019, section 4.2; the paper does
not spell the loss out). Every column of the last pass depends on the connector, so the whole row runs forward and
backward in each pass but the first, which depends on nothing trained: with its states kept on disk (`pass_cache.py`) a
step of two passes costs one pass and the connector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from frozenlm.errors import ConfigError
from frozenlm.lm_tasks import Example, Unit
from frozenlm.recursion.neural import RecursiveLM, evaluating
from frozenlm.recursion.pass_cache import FirstPassCache
from frozenlm.rows import Tokens


def recursion_loss(
    model: RecursiveLM,
    examples: Sequence[Example],
    first_pass: FirstPassCache | None = None,
    *,
    unit: Unit = "token",
) -> tuple[Tensor, int]:
    """The loss that `frozenlm.training.fit` takes, as `frozenlm.lm_tasks.prompt_loss` is for one pass.

    first_pass: where the states of pass 1 are kept, of the rows that `rows_read` names
    unit: "token" sums -log p over answer tokens, "example" sums the mean of each answer

    Raises: as `RecursiveLM.token_logprobs`.
    """
    logprobs = model.token_logprobs(
        [[Tokens(example.context)] for example in examples],
        [example.answer for example in examples],
        sources=[example.source for example in examples],
        first_pass=first_pass,
    )
    if unit == "example":
        return -torch.stack([one.mean() for one in logprobs]).sum(), len(examples)
    return -torch.cat(logprobs).sum(), sum(map(len, logprobs))


@torch.no_grad()
def mean_recursion_loss(
    model: RecursiveLM,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    first_pass: FirstPassCache | None = None,
) -> float:
    """Mean -log p an answer token, in nats, over all examples, in eval mode; examples of like length share a batch.

    Raises: ConfigError without an example; as `recursion_loss`.
    """
    if not examples:
        raise ConfigError("mean_recursion_loss was given no example; expected at least one")
    order = sorted(range(len(examples)), key=lambda index: examples[index].length)
    total, units = 0.0, 0
    with evaluating(model.module):
        for start in range(0, len(order), batch_size):
            batch = [examples[index] for index in order[start : start + batch_size]]
            value, count = recursion_loss(model, batch, first_pass)
            total, units = total + float(value), units + count
    return total / units


def rows_read(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """What pass 1 reads of each example: all but the last answer token, which is only predicted."""
    return [(*example.context, *example.answer[:-1]) for example in examples]
