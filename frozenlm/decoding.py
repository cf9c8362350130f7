"""Decoding loops of our own: greedy, sampling, beam search.

They call the head on the one hidden state a sequence that is needed, drop sequences that have finished from the batch,
and give the log-probability of every token under the LM itself (float32, before temperature, top-k and top-p).
Sampling takes its random numbers per sequence from (seed, row, sequence), so a row's samples do not depend on what else
is in the batch. Warping is transformers' own code; beam search follows its rules (two candidates a beam, scores divided
by length ** length_penalty), checked against it in the tests.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from frozenlm.backbone import State
from frozenlm.errors import ConfigError

Stopped = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Generation:
    """One generated text.

    Args:
        text: decoded from the new ids only, cut before the first stop string, without control tokens.
        ids: every generated id, the one that ended the text (eos, or the end of the stop string) included.
        logprobs: nats, one for each id, under the LM as it is.
        stopped: why it ended.
    """

    text: str
    ids: list[int]
    logprobs: list[float]
    stopped: Stopped

    @property
    def logprob(self) -> float:
        """Sum of `logprobs`."""
        return float(sum(self.logprobs))


@dataclass(frozen=True)
class Settings:
    """How to decode; see `FrozenLM.generate`.

    Raises:
        ConfigError: a value out of range, or two that exclude each other.
    """

    max_new_tokens: int = 32
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ("\n",)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_new_tokens", self.max_new_tokens, 1),
            ("num_beams", self.num_beams, 1),
            ("num_return_sequences", self.num_return_sequences, 1),
            ("top_k", self.top_k, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature must be above 0, got {self.temperature}; for greedy decoding leave do_sample off"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.do_sample and self.num_beams > 1:
            raise ConfigError("do_sample and num_beams > 1 exclude each other; choose one")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ConfigError(
                f"num_return_sequences {self.num_return_sequences} needs do_sample=True or at least as many beams, "
                f"got num_beams {self.num_beams}: greedy decoding has one answer"
            )
        if isinstance(self.stop, str) or any(not isinstance(one, str) or one == "" for one in self.stop):
            raise ConfigError(f"stop must be a tuple of non-empty strings, got {self.stop!r}")


class StopRule:
    """When a sequence of ids has ended, and which text it stands for."""

    def __init__(self, eos_ids: Sequence[int], stop: tuple[str, ...], decode: Callable[[Sequence[int]], str]) -> None:
        self.eos_ids = frozenset(eos_ids)
        self._stop, self._decode = stop, decode
        self._may_end: dict[int, bool] = {}
        # A one-character ASCII stop is never split over tokens: look at the newest token alone, once for each id.
        self._by_token = all(len(one) == 1 and one.isascii() and one != " " for one in stop)

    def ended(self, ids: Sequence[int]) -> Stopped | None:
        """Whether the newest id ends the sequence."""
        if ids[-1] in self.eos_ids:
            return "eos"
        if self._stop and self._may_stop(ids[-1]):
            text = self._decode(ids)
            if any(one in text for one in self._stop):
                return "stop"
        return None

    def text(self, ids: Sequence[int]) -> str:
        """The text of the ids, cut before the first stop string."""
        text = self._decode([i for i in ids if i not in self.eos_ids])
        cuts = [text.index(one) for one in self._stop if one in text]
        return text[: min(cuts)] if cuts else text

    def _may_stop(self, token: int) -> bool:
        if not self._by_token:
            return True
        if token not in self._may_end:
            text = self._decode([token])
            self._may_end[token] = any(one in text for one in self._stop)
        return self._may_end[token]


@dataclass
class _Sequence:
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: Stopped = "length"

    def finish(self, rule: StopRule) -> Generation:
        return Generation(rule.text(self.ids), self.ids, self.logprobs, self.stopped)


def decode_batch(
    state: State,
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    rule: StopRule,
    settings: Settings,
    row_numbers: Sequence[int],
    seed: int,
) -> list[list[Generation]]:
    """Decode one batch.

    Args:
        state: after the rows were read, B sequences.
        hidden: [B, H], each row's last hidden state.
        head: hidden [n, H] -> logits [n, V].
        row_numbers: B numbers of the rows in the caller's list, from which their random numbers are drawn.

    Returns:
        B lists of `num_return_sequences` generations; beams best first.
    """
    if settings.num_beams > 1:
        return _beam_search(state, hidden, head, rule, settings)
    copies = settings.num_return_sequences
    if copies > 1:
        index = torch.arange(len(hidden), device=hidden.device).repeat_interleave(copies)
        state.select(index)
        hidden = hidden[index]
    choose = _sampler(settings, row_numbers, seed) if settings.do_sample else _argmax
    sequences = _one_by_one(state, hidden, head, rule, settings.max_new_tokens, choose)
    done = [sequence.finish(rule) for sequence in sequences]
    return [done[start : start + copies] for start in range(0, len(done), copies)]


def fresh_seed(seed: int | None) -> int:
    """The caller's seed, or a random one; the global random state is left alone."""
    return secrets.randbits(63) if seed is None else seed


Chooser = Callable[[Tensor, list[int], int], Tensor]  # logits [n, V], sequence numbers [n], step -> ids [n]


def _one_by_one(
    state: State, hidden: Tensor, head: Callable[[Tensor], Tensor], rule: StopRule, max_new: int, choose: Chooser
) -> list[_Sequence]:
    sequences = [_Sequence() for _ in range(len(hidden))]
    running = list(range(len(sequences)))
    for step in range(max_new):
        logits = head(hidden).float()
        chosen = choose(logits, running, step)
        logprobs = logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=1)
        kept: list[int] = []
        for place, (number, token, logprob) in enumerate(zip(running, chosen.tolist(), logprobs.tolist(), strict=True)):
            sequence = sequences[number]
            sequence.ids.append(token)
            sequence.logprobs.append(logprob)
            ended = rule.ended(sequence.ids)
            if ended:
                sequence.stopped = ended
            else:
                kept.append(place)
        if not kept or step == max_new - 1:
            break
        if len(kept) < len(running):
            index = torch.tensor(kept, device=hidden.device)
            state.select(index)
            chosen = chosen[index]
            running = [running[place] for place in kept]
        hidden = state.step(chosen)
    return sequences


def _argmax(logits: Tensor, numbers: list[int], step: int) -> Tensor:
    return logits.argmax(dim=1)


def _sampler(settings: Settings, row_numbers: Sequence[int], seed: int) -> Chooser:
    warpers = LogitsProcessorList()
    if settings.temperature != 1:
        warpers.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    copies = settings.num_return_sequences
    no_ids: Any = torch.empty(0, dtype=torch.long)  # the warpers ask for the ids so far and do not look
    draws = np.stack(
        [
            np.random.default_rng([seed % 2**64, row, copy]).random(settings.max_new_tokens)
            for row in row_numbers
            for copy in range(copies)
        ]
    )

    def choose(logits: Tensor, numbers: list[int], step: int) -> Tensor:
        probabilities = warpers(no_ids, logits).softmax(dim=1)
        cumulated = probabilities.double().cumsum(dim=1)
        aim = torch.from_numpy(draws[numbers, step]).to(logits.device).unsqueeze(1) * cumulated[:, -1:]
        # The first token whose cumulated probability exceeds the draw; one of probability zero is never it.
        return torch.searchsorted(cumulated, aim, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)

    return choose


@dataclass
class _Beam:
    ids: list[int]
    logprobs: list[float]
    score: float


@dataclass
class _Hypothesis:
    sequence: _Sequence
    score: float


def _beam_search(
    state: State, hidden: Tensor, head: Callable[[Tensor], Tensor], rule: StopRule, settings: Settings
) -> list[list[Generation]]:
    width, penalty = settings.num_beams, settings.length_penalty
    keep = max(2, 1 + len(rule.eos_ids)) * width  # enough candidates that `width` of them go on
    finished: list[list[_Hypothesis]] = [[] for _ in range(len(hidden))]
    beams: dict[int, list[_Beam]] = {row: [_Beam([], [], 0.0)] for row in range(len(hidden))}
    for step in range(1, settings.max_new_tokens + 1):
        logprobs = head(hidden).float().log_softmax(dim=1)
        parents: list[int] = []
        following: dict[int, list[_Beam]] = {}
        first = 0
        for row, group in beams.items():
            block = logprobs[first : first + len(group)]
            scores = block + torch.tensor([[beam.score] for beam in group], device=block.device)
            best = scores.flatten().topk(min(keep, scores.numel()))
            going: list[_Beam] = []
            origins: list[int] = []
            newest_logprobs = block.flatten()[best.indices].tolist()
            candidates = zip(best.values.tolist(), best.indices.tolist(), newest_logprobs, strict=True)
            for rank, (score, flat, logprob) in enumerate(candidates):
                origin, token = divmod(flat, block.shape[1])
                beam = _Beam([*group[origin].ids, token], [*group[origin].logprobs, logprob], score)
                ended = rule.ended(beam.ids)
                if not ended and step == settings.max_new_tokens:
                    ended = "length"
                if ended and rank < width:
                    sequence = _Sequence(beam.ids, beam.logprobs, ended)
                    finished[row].append(_Hypothesis(sequence, score / step**penalty))
                elif not ended and len(going) < width:
                    going.append(beam)
                    origins.append(first + origin)
            finished[row] = sorted(finished[row], key=lambda one: -one.score)[:width]
            first += len(group)
            worst = finished[row][-1].score if len(finished[row]) == width else -float("inf")
            # No running beam can still enter the list (transformers' rule: judged at the length it has now).
            if going and going[0].score / step**penalty > worst:
                following[row] = going
                parents.extend(origins)
        if not following:
            break
        index = torch.tensor(parents, device=hidden.device)
        state.select(index)
        beams = following
        newest = torch.tensor([beam.ids[-1] for group in beams.values() for beam in group], device=hidden.device)
        hidden = state.step(newest)
    return [[one.sequence.finish(rule) for one in row[: settings.num_return_sequences]] for row in finished]
