"""Candidates: merging and voting in arithmetic that can be done in the head, sampling against plain `generate`."""

import itertools
import math

import pytest
import torch

from frozenlm.decoding import Generation
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.candidates import (
    Candidate,
    Candidates,
    agreement,
    best_by_score,
    majority,
    merged,
    oracle_at_n,
    sample_candidates,
    with_prompt,
)
from frozenlm.rows import Tokens
from tests.toys import toy_lm

ROWS = [[Tokens.of(ids)] for ids in ([20, 21, 22], [30, 31, 32, 33, 34, 35], [40])]
SETTINGS = {"n": 6, "temperature": 1.5, "max_new_tokens": 3, "stop": (), "seed": 4}


def sample(text: str, probability: float, *ids: int) -> Generation:
    return Generation(text, list(ids), [math.log(probability)], "eos")


SAMPLES = [
    sample("Paris", 0.4, 1),
    sample("paris ", 0.1, 2),
    sample("Paris", 0.4, 1),
    sample("Lyon", 0.3, 3),
    sample("Nice", 0.05, 4),
    sample(" ", 0.1, 5),
]


def test_samples_that_say_the_same_are_one_candidate() -> None:
    found = merged(SAMPLES)
    assert [(one.text, one.count) for one in found.ranked] == [("Paris", 3), ("Lyon", 1), ("Nice", 1)]
    # Two different samples say Paris: 0.4 + 0.1; the repeated one adds to the count only.
    assert [math.exp(one.logprob) for one in found.ranked] == pytest.approx([0.5, 0.3, 0.05])
    assert (found.drawn, found.empty) == (6, 1)


def test_neither_order_nor_repetition_of_samples_matters() -> None:
    found = merged(SAMPLES)
    assert all(merged(order) == found for order in itertools.permutations(SAMPLES))
    twice = merged([*SAMPLES, *SAMPLES])
    assert [(one.text, one.logprob) for one in twice.ranked] == [(one.text, one.logprob) for one in found.ranked]
    assert [one.count for one in twice.ranked] == [6, 2, 2]


def test_the_caller_says_what_is_the_same() -> None:
    def letters(text: str) -> str:
        return "".join(c for c in text.lower().replace("the ", "") if c.isalpha())

    found = merged([sample("U.S.", 0.2, 1), sample("the US", 0.3, 2), sample("?!", 0.1, 3)], normalize=letters)
    # Nothing of "?!" is left in that form, but it is a text.
    assert [(one.text, one.count) for one in found.ranked] == [("the US", 2), ("?!", 1)]
    assert found.empty == 0


def test_vote_best_of_n_and_oracle_may_differ() -> None:
    often, likely, right = Candidate("a", 5, -3.0), Candidate("b", 2, -1.0), Candidate("c", 1, -4.0)
    for order in itertools.permutations([often, likely, right]):
        assert majority(order) == often
        assert best_by_score(order) == likely
        assert oracle_at_n(order, lambda text: text == "c")
        assert not oracle_at_n(order, lambda text: text == "d")
    assert majority([Candidate("a", 2, -2.0), Candidate("b", 2, -1.0)]) == Candidate("b", 2, -1.0)
    assert agreement(Candidates((often, likely, right), drawn=10, empty=2)) == 5 / 10


def test_without_a_candidate_there_is_no_choice() -> None:
    nothing = merged([sample("", 0.5, 1), sample("  ", 0.5, 2)])
    assert nothing == Candidates((), drawn=2, empty=2)
    assert majority(nothing.ranked) is None and best_by_score(nothing.ranked) is None
    assert not oracle_at_n(nothing.ranked, lambda _: True) and agreement(nothing) == 0


def test_record_keeps_everything() -> None:
    found = merged(SAMPLES)
    assert Candidates.from_record(found.to_record()) == found
    assert found.to_record()["candidates"][1] == {"text": "Lyon", "count": 1, "logprob": math.log(0.3)}


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_candidates_are_the_samples_of_one_shared_reading(name: str) -> None:
    lm = toy_lm(name)
    first = lm.model.get_encoder() if name == "t5" else lm.model
    read: list[int] = []
    hook = first.get_input_embeddings().register_forward_hook(lambda _, args, __: read.append(args[0].numel()))
    found = sample_candidates(lm, ROWS, **SETTINGS)
    hook.remove()
    plain = lm.generate(
        ROWS, do_sample=True, temperature=1.5, num_return_sequences=6, max_new_tokens=3, stop=(), seed=4
    )
    assert found == [merged(copies) for copies in plain]
    assert [one.drawn for one in found] == [6, 6, 6]
    assert read[0] == 3 + 6 + 1 + 1  # every token of the rows once, not six times, and the padding


def test_a_row_keeps_its_candidates_in_another_order() -> None:
    lm = toy_lm("llama")
    found = sample_candidates(lm, ROWS, row_numbers=[7, 8, 9], **SETTINGS)
    turned = sample_candidates(lm, ROWS[::-1], row_numbers=[9, 8, 7], **SETTINGS)[::-1]
    for one, other in zip(found, turned, strict=True):
        assert [(c.text, c.count) for c in one.ranked] == [(c.text, c.count) for c in other.ranked]
        assert [c.logprob for c in one.ranked] == pytest.approx([c.logprob for c in other.ranked], abs=1e-4)


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_the_prompt_stands_in_every_row(position: str) -> None:
    lm = toy_lm("gpt2")
    prompt = SoftPrompt(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)), position=position)  # type: ignore[arg-type]
    with_it = sample_candidates(lm, ROWS, prompt=prompt, **SETTINGS)
    assert with_it == sample_candidates(lm, [prompt.place(row) for row in ROWS], **SETTINGS)
    assert with_it != sample_candidates(lm, ROWS, **SETTINGS)


def test_one_greedy_candidate() -> None:
    lm = toy_lm("gpt2")
    greedy = lm.generate(ROWS, max_new_tokens=3, stop=())
    found = sample_candidates(lm, ROWS, n=1, temperature=0, max_new_tokens=3, stop=())
    assert found == [merged([one]) for one in greedy]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"temperature": 0}, "the same answer 6 times"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_that_give_no_candidates(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_candidates(toy_lm("gpt2"), ROWS, **{**SETTINGS, **changes})


def test_one_source_a_row() -> None:
    prompt = SoftPrompt(torch.zeros(2, 32))
    with pytest.raises(ShapeError, match="2 sources of the prompt for 3 rows"):
        with_prompt(ROWS, prompt, [PromptInput("a")] * 2)
