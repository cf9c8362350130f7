"""Candidate answers: what the frozen LM says when asked n times (Levine et al. 2022, arXiv 2204.10019, section 4.1).

A row is read once and continued n times in one batch. Samples that say the same, up to a normal form, are one
candidate. Our choices, since the paper names neither: a candidate has the number of its samples and a log-probability,
the log of the summed probabilities of its *different* samples. These are disjoint events, so the sum is a lower bound
of the probability that the LM gives this answer; it does not grow with repetition, which the count shows. The order is
by count, then log-probability, then text. The baselines over the same candidates are here too: majority vote
(self-consistency, arXiv 2203.11171), best of n by the LM's score, and the oracle, the ceiling of any choice among them.
Log-probabilities are nats under the LM as it is, before temperature and top-p.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frozenlm.decoding import Generation
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.lm import BATCH_TOKENS
from frozenlm.memory import Memory
from frozenlm.prompts.interface import PromptInput, PromptModule, prompted
from frozenlm.rows import Row

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

Normal = Callable[[str], str]


@dataclass(frozen=True)
class Candidate:
    """One answer that was sampled.

    text: the spelling of its likeliest sample, white space squeezed
    count: samples that say it
    logprob: nats, see the module's docstring
    """

    text: str
    count: int
    logprob: float


@dataclass(frozen=True)
class Candidates:
    """What the samples of one row say.

    ranked: the different answers, best first
    drawn: samples
    empty: samples without any text, which are no candidates
    """

    ranked: tuple[Candidate, ...]
    drawn: int
    empty: int = 0

    def to_record(self) -> dict[str, Any]:
        """As plain JSON values."""
        listed = [{"text": one.text, "count": one.count, "logprob": one.logprob} for one in self.ranked]
        return {"candidates": listed, "drawn": self.drawn, "empty": self.empty}

    @classmethod
    def from_record(cls, record: Any) -> "Candidates":
        """From what `to_record` made; other keys are not looked at.

        Raises: KeyError, TypeError or ValueError when a field is missing or of another type.
        """
        ranked = (Candidate(str(r["text"]), int(r["count"]), float(r["logprob"])) for r in record["candidates"])
        return cls(tuple(ranked), int(record["drawn"]), int(record["empty"]))


def plain_form(text: str) -> str:
    """The default normal form: case and runs of white space make no difference."""
    return " ".join(text.casefold().split())


def merged(samples: Iterable[Generation], *, normalize: Normal = plain_form) -> Candidates:
    """Samples that say the same become one candidate. Their order does not matter.

    normalize: text -> normal form; texts of one form are one answer. A text of which the form leaves nothing ("The"
        without its articles) is told apart by `plain_form`.
    """
    drawn, empty = 0, 0
    groups: dict[str, list[Generation]] = {}
    for sample in samples:
        drawn += 1
        if not sample.text.strip():
            empty += 1
            continue
        form = normalize(sample.text).strip()
        groups.setdefault(f"form {form}" if form else f"text {plain_form(sample.text)}", []).append(sample)
    found = [_as_one(group) for group in groups.values()]
    return Candidates(tuple(sorted(found, key=_by_count)), drawn, empty)


def sample_candidates(
    lm: "FrozenLM",
    rows: Sequence[Row],
    *,
    n: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 32,
    seed: int = 0,
    prompt: PromptModule | None = None,
    sources: Sequence[PromptInput] | None = None,
    memory: Memory | None = None,
    normalize: Normal = plain_form,
    stop: Sequence[str] = ("\n",),
    row_numbers: Sequence[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Candidates]:
    """n continuations of each row, which is read once.

    rows: B rows, without the prompt
    n: samples a row
    temperature: 0 is the greedy answer, which there is only one of
    prompt: stands in every row, as its position says; sources: what it is written from, B inputs
    memory: what the rows go on from, B rows; then the prompt is in it or in the rows, and not given
    stop, row_numbers, batch_tokens: as in `FrozenLM.generate`

    Raises: ConfigError for n below 1, temperature 0 with n above 1, or another setting out of range; ShapeError for a
        row that leaves no room, or not one source a row.
    """
    check_sampling(n, temperature)
    if memory is not None and prompt is not None:
        raise ConfigError("a memory goes with a prompt that was read into it or stands in the rows; leave prompt out")
    made: Any = lm.generate(
        with_prompt(rows, prompt, sources),
        memory=memory,
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else 1.0,
        top_p=top_p,
        num_return_sequences=n,
        stop=stop,
        seed=seed,
        row_numbers=row_numbers,
        batch_tokens=batch_tokens,
    )
    return [merged(one if n > 1 else [one], normalize=normalize) for one in made]


def with_prompt(
    rows: Sequence[Row], prompt: PromptModule | None, sources: Sequence[PromptInput] | None = None
) -> list[Row]:
    """B rows with the prompt where it belongs; as they are without one.

    Raises: ShapeError when there is not one source a row.
    """
    if sources is not None and len(sources) != len(rows):
        raise ShapeError(f"{len(sources)} sources of the prompt for {len(rows)} rows; give one each, or none")
    return prompted(prompt, rows, sources if sources is not None else [PromptInput()] * len(rows))


def check_sampling(n: int, temperature: float) -> None:
    """Raises ConfigError for numbers that give no candidates, or n times the same one."""
    if n < 1:
        raise ConfigError(f"the number of candidates n must be at least 1, got {n}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"temperature must be a finite number of at least 0, got {temperature}")
    if temperature == 0 and n > 1:
        raise ConfigError(
            f"temperature 0 gives the same answer {n} times; raise temperature (0.7, for instance), or set n to 1"
        )


def majority(candidates: Sequence[Candidate]) -> Candidate | None:
    """The answer of most samples; ties go to the likelier one. None without a candidate."""
    return min(candidates, key=_by_count, default=None)


def best_by_score(candidates: Sequence[Candidate]) -> Candidate | None:
    """The likeliest answer under the LM; ties go to the more frequent one. None without a candidate."""
    return min(candidates, key=lambda one: (-one.logprob, -one.count, one.text), default=None)


def oracle_at_n(candidates: Sequence[Candidate], is_right: Callable[[str], bool]) -> bool:
    """Whether a right answer is among the candidates; the mean over questions is oracle@n."""
    return any(is_right(one.text) for one in candidates)


def agreement(found: Candidates) -> float:
    """Share of the samples, empty ones included, that say the most frequent answer; 0 without a candidate."""
    best = majority(found.ranked)
    return best.count / found.drawn if best is not None else 0.0


def _by_count(one: Candidate) -> tuple[int, float, str]:
    return -one.count, -one.logprob, one.text


def _as_one(group: Sequence[Generation]) -> Candidate:
    different = {tuple(sample.ids): sample for sample in sorted(group, key=_by_likelihood, reverse=True)}
    best = min(group, key=_by_likelihood)
    # Summed from the smallest up, so that the order of the samples does not show in the last bits.
    peak = best.logprob
    total = sum(math.exp(one.logprob - peak) for one in different.values())
    return Candidate(" ".join(best.text.split()), len(group), peak + math.log(total))


def _by_likelihood(sample: Generation) -> tuple[float, str, list[int]]:
    return -sample.logprob, sample.text, sample.ids
