"""What a host says in the answer's place: scores of words, for questions of any templates and verbalizers in one batch.

Three ways, by what the verbalizer asks for:

    from the state in the answer's place    one pass over all such rows; words of one piece, and learned verbalizers
    whole words, an LM that writes          each row is read once for all its words (`ranking.rank_rows`)
    whole words, a masked LM                a word of k pieces is read off k masks, all at once: the sum of its pieces'
                                            log-probabilities (our choice; PET fills them one after another). Words of
                                            as many pieces share a row

A prefix that several rows of a decoder-only LM share (demonstrations) is read once, and the rows go on from its memory.
It is kept once too, and copied for the rows of one batch at a time.
Scores are differentiable in the soft slots and in a learned verbalizer.
Shapes: B questions, W words of a verbalizer, H' width of the head's input, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from frozenlm.lm import BATCH_TOKENS
from frozenlm.memory import Memory
from frozenlm.prompting.filled import Filled, PromptHost
from frozenlm.ranking import rank_rows
from frozenlm.rows import Row, Soft, Tokens, plan_batches, row_length

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM
    from frozenlm.prompting.masked import FrozenMaskedLM


class LabelWords(Protocol):
    """A verbalizer.

    labels: as text. owners: of each word, the place of its label
    """

    labels: tuple[str, ...]
    owners: tuple[int, ...]

    def whole(self, host: PromptHost, *, spaced: bool) -> list[list[int]] | None:
        """Token ids of each word where words are scored whole; None where the state in the answer's place is enough."""
        ...

    def from_states(self, host: PromptHost, states: Tensor, *, spaced: bool) -> Tensor:
        """states [n, H'] -> scores [n, W]; differentiable."""
        ...

    def word(self, label: object, *, where: str) -> str:
        """The word that a demonstration shows for a label."""
        ...


@dataclass(frozen=True, eq=False)
class _Shared:
    """What questions go on from: a memory of each prefix, and of each question the place of its own in there."""

    memory: Memory
    places: Sequence[int]

    def lengths(self) -> list[int]:
        read = self.memory.lengths.tolist()
        return [read[place] for place in self.places]

    def select(self, questions: Sequence[int]) -> Memory:
        return self.memory.select([self.places[i] for i in questions])


@dataclass(frozen=True, eq=False)
class Question:
    """A filled template, and the verbalizer that its answer is read with."""

    filled: Filled
    verbalizer: LabelWords


def word_scores(
    host: PromptHost, questions: Sequence[Question], *, batch_tokens: int = BATCH_TOKENS, share: bool = True
) -> list[Tensor]:
    """[W] scores of each question's words, float32, such that a softmax over them gives their probabilities.

    batch_tokens: the most tokens of a batch
    share: read a prefix that several questions share once

    Raises: ShapeError for a row that does not fit; what the verbalizers raise.
    """
    scores: list[Tensor] = [torch.empty(0)] * len(questions)
    groups = _by_prefix(host, questions, batch_tokens) if share else [list(range(len(questions)))]
    for group in groups:
        asked = [questions[i] for i in group]
        left, shared = _read_ahead(host, asked, batch_tokens) if share else (asked, None)
        for i, found in zip(group, _scored(host, left, shared, batch_tokens), strict=True):
            scores[i] = found
    return scores


def answer_states(host: PromptHost, asked: Sequence[Filled], *, memory: Memory | None = None) -> Tensor:
    """[B, H'] states in the answers' places, in one batch; differentiable in every `Soft`.

    memory: what the rows go on from, for decoder-only LMs

    Raises: ShapeError for a row that does not fit.
    """
    rows = [one.row for one in asked]
    if host.kind == "masked":
        return torch.cat(cast("FrozenMaskedLM", host).mask_states(rows))
    lm = cast("FrozenLM", host)
    starts: list[Row] | None = None
    if lm.kind == "encoder-decoder":
        starts = [[Tokens((*lm.start_ids, *one.starts))] for one in asked]
    hidden, batch = lm.engine.run(rows, memory, starts)
    return hidden[torch.arange(len(asked), device=hidden.device), batch.last_column]


def head(host: PromptHost, states: Tensor) -> Tensor:
    """states [n, H'] -> logits [n, V] float32."""
    if host.kind == "masked":
        return cast("FrozenMaskedLM", host).head(states).float()
    return cast("FrozenLM", host).engine.head(states).float()


def _by_prefix(host: PromptHost, questions: Sequence[Question], batch_tokens: int) -> list[list[int]]:
    """Groups of questions to score together: those that share prefixes, as many prefixes as a batch holds; the rest."""
    sharing: dict[tuple[Tokens, ...], list[int]] = {}
    alone: list[int] = []
    for i, one in enumerate(questions):
        key = _head(one.filled)
        if host.kind == "decoder" and key is not None:
            sharing.setdefault(key, []).append(i)
        else:
            alone.append(i)
    alone += [own[0] for own in sharing.values() if len(own) == 1]
    shared = [key for key, own in sharing.items() if len(own) > 1]
    parts = plan_batches([row_length(key) for key in shared], batch_tokens=batch_tokens)
    groups = [[i for place in part for i in sharing[shared[place]]] for part in parts]
    return [alone, *groups] if alone else groups


def _read_ahead(
    host: PromptHost, asked: Sequence[Question], batch_tokens: int
) -> tuple[list[Question], _Shared | None]:
    """The questions without what they share, and the memory of that; as they are where they share nothing."""
    heads = [_head(one.filled) for one in asked]
    distinct = [key for key in dict.fromkeys(heads) if key is not None]
    if host.kind != "decoder" or None in heads or len(distinct) == len(asked):
        return list(asked), None
    memory = cast("FrozenLM", host).read(distinct, batch_tokens=batch_tokens)
    places = {key: number for number, key in enumerate(distinct)}
    left = [replace(one, filled=replace(one.filled, opens=(), prefix=())) for one in asked]
    return left, _Shared(memory, [places[key] for key in heads if key is not None])


def _head(filled: Filled) -> tuple[Tokens, ...] | None:
    """What stands before the body where demonstrations do, as a row; None where none do, or nothing is left to read
    behind them."""
    if not row_length(filled.body) + len(filled.closes):
        return None
    tokens = tuple(segment for segment in filled.prefix if isinstance(segment, Tokens))
    return (Tokens(filled.opens), *tokens) if tokens and len(tokens) == len(filled.prefix) else None


def _scored(host: PromptHost, questions: Sequence[Question], shared: _Shared | None, batch_tokens: int) -> list[Tensor]:
    scores: list[Tensor] = [torch.empty(0)] * len(questions)
    words = [one.verbalizer.whole(host, spaced=one.filled.spaced) for one in questions]
    read = [0] * len(questions) if shared is None else shared.lengths()
    lengths = [one.filled.length + before for one, before in zip(questions, read, strict=True)]
    for whole in (False, True):
        group = [i for i, own in enumerate(words) if (own is not None) is whole]
        parts = plan_batches([lengths[i] for i in group], batch_tokens=batch_tokens)
        if group and whole and shared is None:
            parts = [[*range(len(group))]]  # split further on; here only a memory's copies would need it
        for part in parts:
            batch = [group[place] for place in part]
            asked, memory = [questions[i] for i in batch], None if shared is None else shared.select(batch)
            choices = [own for i in batch if (own := words[i]) is not None]
            if choices:
                found = _from_whole_words(host, [one.filled for one in asked], choices, memory, batch_tokens)
            else:
                found = _from_states(host, asked, memory)
            for i, one in zip(batch, found, strict=True):
                scores[i] = one
    return scores


def _from_whole_words(
    host: PromptHost,
    asked: Sequence[Filled],
    words: Sequence[list[list[int]]],
    memory: Memory | None,
    batch_tokens: int,
) -> list[Tensor]:
    if host.kind == "masked":
        return _masked_words(cast("FrozenMaskedLM", host), asked, words, batch_tokens)
    return _written_words(cast("FrozenLM", host), asked, words, memory, batch_tokens)


def _from_states(host: PromptHost, questions: Sequence[Question], memory: Memory | None) -> list[Tensor]:
    states = answer_states(host, [one.filled for one in questions], memory=memory)
    scores: list[Tensor] = [torch.empty(0)] * len(questions)
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, one in enumerate(questions):
        groups.setdefault((id(one.verbalizer), one.filled.spaced), []).append(i)
    for own in groups.values():
        first = questions[own[0]]
        found = first.verbalizer.from_states(host, states[own], spaced=first.filled.spaced)
        for i, values in zip(own, found.float(), strict=True):
            scores[i] = values
    return scores


def _written_words(
    lm: "FrozenLM",
    asked: Sequence[Filled],
    words: Sequence[list[list[int]]],
    memory: Memory | None,
    batch_tokens: int,
) -> list[Tensor]:
    choices = [[[*one.starts, *word] for word in own] for one, own in zip(asked, words, strict=True)]
    if not torch.is_grad_enabled() or not any(_learns(one) for one in asked):
        scores = rank_rows(lm, [one.row for one in asked], choices, memory=memory, batch_tokens=batch_tokens)
        return [torch.tensor(one, device=lm.device) for one in scores]
    owner = [i for i, own in enumerate(choices) for _ in own]
    found = lm.token_logprobs(
        [asked[i].row for i in owner],
        [word for own in choices for word in own],
        memory=None if memory is None else memory.select(owner),
    )
    return list(torch.stack([one.sum() for one in found]).split([len(own) for own in choices]))


def _masked_words(
    lm: "FrozenMaskedLM", asked: Sequence[Filled], words: Sequence[list[list[int]]], batch_tokens: int
) -> list[Tensor]:
    jobs = [(i, masks) for i, own in enumerate(words) for masks in sorted({len(word) for word in own})]
    rows = [asked[i].widened(masks).row for i, masks in jobs]
    scores: list[list[Tensor]] = [[torch.empty(0)] * len(own) for own in words]
    for part in plan_batches([row_length(row) for row in rows], batch_tokens=batch_tokens):
        states = lm.mask_states([rows[place] for place in part])
        logprobs = lm.head(torch.cat(states)).float().log_softmax(dim=1).split([len(one) for one in states])
        for place, found in zip(part, logprobs, strict=True):
            i, masks = jobs[place]
            for number, word in enumerate(words[i]):
                if len(word) == masks:
                    pieces = torch.tensor(word, device=found.device)
                    scores[i][number] = found.gather(1, pieces[:, None]).sum()
    return [torch.stack(own) for own in scores]


def _learns(asked: Filled) -> bool:
    return any(isinstance(segment, Soft) and segment.vectors.requires_grad for segment in asked.body)
