"""Rank classification: of a fixed set of choices, the answer is the one that the LM finds likeliest.

Brown et al. 2020 (GPT-3, arXiv 2005.14165) and Sanh et al. 2021 (T0, arXiv 2110.08207) evaluate so; T0 sums the
log-probabilities of a choice's tokens and does not divide by their number, which is our default too. How a context is
read once for all its choices is our choice:

    choices of one token   one forward pass over prompt and context; all scores are read off its last state
    longer choices         all but the last column is read into a memory, from which each choice goes on with a pass
                           over that column and its own tokens
    encoder-decoder        the encoder reads prompt and context once, the decoder is asked for each choice

The scores are those of scoring each whole row by itself. Shapes: B rows, V vocabulary (`docs/notation.md`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch

from frozenlm.context_cache import ContextCache
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.lm import BATCH_TOKENS
from frozenlm.lm_tasks import reads_context_once
from frozenlm.memory import Memory
from frozenlm.prompts.interface import PromptInput, PromptModule, prompted
from frozenlm.rows import Row, Soft, Tokens, plan_batches, row_length

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

Normalize = Literal["none", "tokens"]
Choices = Sequence[Sequence[int]]


@torch.no_grad()
def rank_choices(
    lm: "FrozenLM",
    contexts: Sequence[Sequence[int]],
    choices: Sequence[Choices],
    prompt: PromptModule | None,
    sources: Sequence[PromptInput],
    *,
    normalize: Normalize = "none",
    batch_tokens: int = BATCH_TOKENS,
    memory_cache: ContextCache | None = None,
) -> list[list[float]]:
    """Log-probability (nats) of every choice after its context, for any number of rows.

    contexts: token ids before the answer, opening and closing tokens included
    choices: of each row, the token ids of its candidates; count an end token in where answers are trained with one
    prompt: written once a row; None ranks with the LM as it is. A method with dropout must be in eval mode.
    sources: what the prompts are written from, one a row
    normalize: "none" sums over a choice's tokens, so that longer choices tend to score lower; "tokens" takes the mean
    batch_tokens: the most tokens of a batch
    memory_cache: keeps what the LM has read of contexts from one call to the next; used by suffix prompts on
        decoder-only LMs, else without effect

    Returns: a list for each row, in order, with a number for each of its choices

    Raises: ShapeError for a row without choices, an empty choice, a row past the window, or lists of other lengths;
        ConfigError for an unknown `normalize`.
    """
    if normalize not in get_args(Normalize):
        raise ConfigError(f"normalize is {normalize!r}; expected one of {get_args(Normalize)}")
    lengths = _checked_lengths(lm, contexts, choices, prompt, sources)
    scores: list[list[float]] = [[]] * len(contexts)
    for single in (True, False):
        group = [i for i, row in enumerate(choices) if all(len(choice) == 1 for choice in row) is single]
        for part in plan_batches([lengths[i] for i in group], batch_tokens=batch_tokens):
            batch = [group[place] for place in part]
            rows, memory = _rows(lm, [contexts[i] for i in batch], prompt, [sources[i] for i in batch], memory_cache)
            own = [choices[i] for i in batch]
            found = (
                _from_last_state(lm, rows, memory, own) if single else _continued(lm, rows, memory, own, batch_tokens)
            )
            for i, values in zip(batch, found, strict=True):
                scores[i] = values
    if normalize == "tokens":
        return [
            [score / len(choice) for score, choice in zip(*pair, strict=True)]
            for pair in zip(scores, choices, strict=True)
        ]
    return scores


@torch.no_grad()
def rank_rows(
    lm: "FrozenLM",
    rows: Sequence[Row],
    choices: Sequence[Choices],
    *,
    memory: Memory | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[list[float]]:
    """`rank_choices` after rows of any segments: summed log-probability (nats) of every choice after its row.

    rows: B rows, none empty; choices: of each row, the token ids of its candidates
    memory: what the rows go on from, B rows; for decoder-only LMs
    batch_tokens: the most tokens of a batch

    Raises: ShapeError for other than one list of choices a row, an empty choice, or a row past the window.
    """
    if len(rows) != len(choices):
        raise ShapeError(f"{len(rows)} rows, {len(choices)} lists of choices; give one list a row")
    read = [0] * len(rows) if memory is None else memory.lengths.tolist()
    scores: list[list[float]] = [[]] * len(rows)
    for single in (True, False):
        group = [i for i, row in enumerate(choices) if all(len(choice) == 1 for choice in row) is single]
        for part in plan_batches([read[i] + row_length(rows[i]) for i in group], batch_tokens=batch_tokens):
            batch = [group[place] for place in part]
            before = None if memory is None else memory.select(batch)
            theirs, own = [rows[i] for i in batch], [choices[i] for i in batch]
            found = (
                _from_last_state(lm, theirs, before, own)
                if single
                else _continued(lm, theirs, before, own, batch_tokens)
            )
            for i, values in zip(batch, found, strict=True):
                scores[i] = values
    return scores


def _rows(
    lm: "FrozenLM",
    contexts: Sequence[Sequence[int]],
    prompt: PromptModule | None,
    sources: Sequence[PromptInput],
    cache: ContextCache | None,
) -> tuple[list[Row], Memory | None]:
    """What stands before the choices, and what it goes on from."""
    texts: list[Row] = [[Tokens.of(context)] for context in contexts]
    if prompt is not None and cache is not None and reads_context_once(lm, prompt):
        return [[segment] for segment in prompt.segments(sources)], cache.memory(contexts)
    return prompted(prompt, texts, sources), None


def _from_last_state(
    lm: "FrozenLM", rows: Sequence[Row], memory: Memory | None, choices: Sequence[Choices]
) -> list[list[float]]:
    """Choices of one token each: all of a row's scores from the state behind it."""
    logits = lm.next_logits(rows, memory=memory)
    owner = torch.tensor([row for row, own in enumerate(choices) for _ in own], device=logits.device)
    ids = torch.tensor([choice[0] for own in choices for choice in own], device=logits.device)
    logprobs = logits[owner, ids] - logits.logsumexp(dim=1)[owner]
    return _grouped(logprobs.tolist(), choices)


def _continued(
    lm: "FrozenLM", rows: Sequence[Row], memory: Memory | None, choices: Sequence[Choices], batch_tokens: int
) -> list[list[float]]:
    """Choices of any length: each goes on from what its row has left behind."""
    tails: Sequence[Row]
    if lm.kind == "encoder-decoder":
        memory, tails = lm.read(rows), [[] for _ in rows]
    else:
        # A choice's first token is predicted by the last column before it, so that column is not in the memory.
        heads, lasts = zip(*(split_last(row) for row in rows), strict=True)
        if all(heads):
            memory, tails = lm.read(heads, memory=memory), lasts
        else:
            tails = rows  # a row of one column (no context to speak of) has nothing to read ahead
    read = [0] * len(rows) if memory is None else memory.lengths.tolist()
    owner = [row for row, own in enumerate(choices) for _ in own]
    answers = [choice for own in choices for choice in own]
    lengths = [read[row] + row_length(tails[row]) + len(answer) for row, answer in zip(owner, answers, strict=True)]
    scores = [0.0] * len(answers)
    for part in plan_batches(lengths, batch_tokens=batch_tokens):
        own = [owner[place] for place in part]
        logprobs = lm.token_logprobs(
            [tails[row] for row in own],
            [answers[place] for place in part],
            memory=None if memory is None else memory.select(own),
        )
        for place, total in zip(part, torch.stack([one.sum() for one in logprobs]).tolist(), strict=True):
            scores[place] = total
    return _grouped(scores, choices)


def split_last(row: Row) -> tuple[list[Tokens | Soft], list[Tokens | Soft]]:
    """The row without its last column, and that column, a text token or a soft vector."""
    *before, last = [segment for segment in row if len(segment)]
    if isinstance(last, Tokens):
        head, tail = Tokens(last.ids[:-1]), Tokens(last.ids[-1:])
        return [*before, *([head] if len(head) else [])], [tail]
    rest, end = Soft(last.vectors[:-1]), Soft(last.vectors[-1:])
    return [*before, *([rest] if len(rest) else [])], [end]


def _grouped(flat: Sequence[float], choices: Sequence[Choices]) -> list[list[float]]:
    taken = iter(flat)
    return [[next(taken) for _ in own] for own in choices]


def _checked_lengths(
    lm: "FrozenLM",
    contexts: Sequence[Sequence[int]],
    choices: Sequence[Choices],
    prompt: PromptModule | None,
    sources: Sequence[PromptInput],
) -> list[int]:
    """Columns of each row before its choices.

    Raises: ShapeError, naming the row, for what cannot be ranked.
    """
    if not len(contexts) == len(choices) == len(sources):
        raise ShapeError(
            f"{len(contexts)} contexts, {len(choices)} lists of choices, {len(sources)} sources; give one each a row"
        )
    lengths = [len(context) + (0 if prompt is None else prompt.length) for context in contexts]
    for number, (length, row) in enumerate(zip(lengths, choices, strict=True)):
        if not row:
            raise ShapeError(f"row {number} has no choices; give at least one, or generate the answer")
        for place, choice in enumerate(row):
            if not len(choice):
                raise ShapeError(f"row {number}, choice {place} is empty; give it at least one token id")
            if not 0 <= min(choice) <= max(choice) < lm.vocab_size:
                raise ShapeError(
                    f"row {number}, choice {place} has token ids {list(choice)[:8]}; expected 0..{lm.vocab_size - 1}"
                )
        longest = length + (0 if lm.kind == "encoder-decoder" else max(map(len, row)) - 1)
        if not length or (lm.window is not None and longest > lm.window):
            raise ShapeError(
                f"row {number} takes {longest} tokens with its prompt and its longest choice; "
                f"expected 1..{lm.window or 'any number'}; shorten the context"
            )
    return lengths
