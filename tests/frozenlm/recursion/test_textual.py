"""Both passes together, against the same passes run by hand."""

from pathlib import Path

import pytest
import torch

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.candidates import Candidates, sample_candidates
from frozenlm.recursion.second_pass import SecondPassTemplate
from frozenlm.recursion.textual import Asked, Recursed, Sampling, TextualRecursion
from frozenlm.recursion.when import When, confidence
from frozenlm.rows import Tokens
from frozenlm.train_data import derived_seed
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit
from tests.test_frozen import state_of
from tests.toys import toy_lm

SEPARATOR = " § "  # no token of the toy LMs, so that no sample holds it
TEMPLATE = SecondPassTemplate("question : {question} text : {candidates} answer :", separator=SEPARATOR)
SAMPLING = Sampling(n=4, temperature=1.5, max_new_tokens=3, stop=(), seed=5)
QUESTIONS = ["where is the king ?", "who was the cat ?", "what is the capital of france ?"]
PASSAGE = tuple(range(30, 42))


def prompt_of(lm: FrozenLM, seed: int, position: str = "suffix") -> SoftPrompt:
    vectors = torch.randn(2, lm.hidden_size, generator=torch.Generator().manual_seed(seed)) * 0.5
    return SoftPrompt(vectors, position=position)  # type: ignore[arg-type]


def asked_of(lm: FrozenLM, before: tuple[int, ...] = PASSAGE) -> list[Asked]:
    return [
        Asked(q, tuple(lm.encode(f"question : {q} answer :")), before[: len(before) - n])
        for n, q in enumerate(QUESTIONS)
    ]


def recursion(lm: FrozenLM, **changes) -> TextualRecursion:
    return TextualRecursion(lm, **{"template": TEMPLATE, "sampling": SAMPLING, "answer_reserve": 4, **changes})


def by_hand(lm: FrozenLM, first: SoftPrompt | None, second: SoftPrompt | None, asked: list[Asked]) -> list[tuple]:
    """Plain calls over whole rows, one question at a time."""
    found = []
    for one in asked:
        row = [Tokens((*one.before, *one.ids, *lm.close_ids))]
        candidates = sample_candidates(
            lm,
            [first.place(row) if first else row],
            n=4,
            temperature=1.5,
            max_new_tokens=3,
            stop=(),
            seed=5,
            row_numbers=[derived_seed("question", one.question)],
        )[0]
        listed = SEPARATOR.join(c.text for c in candidates.ranked)
        text = f"question : {one.question} text : {listed} answer :"
        row = [Tokens((*one.before, *lm.encode(text), *lm.close_ids))]
        said = lm.generate([second.place(row) if second else row], max_new_tokens=3, stop=())[0]
        found.append((candidates, text, said))
    return found


def assert_like(found: list[Recursed], expected: list[tuple]) -> None:
    for one, (candidates, text, said) in zip(found, expected, strict=True):
        assert one.second is not None and one.candidates is not None
        assert [(c.text, c.count) for c in one.candidates.ranked] == [(c.text, c.count) for c in candidates.ranked]
        assert (one.second.text, one.text) == (text, said.text)
        assert one.logprob == pytest.approx(said.logprob, abs=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("positions", [("suffix", "suffix"), ("prefix", "suffix"), None])
def test_both_passes_equal_the_passes_by_hand(name: str, positions: tuple[str, str] | None) -> None:
    lm = toy_lm(name)
    first = prompt_of(lm, 1, positions[0]) if positions else None
    second = prompt_of(lm, 2, positions[1]) if positions else None
    made, asked = recursion(lm, first=first, second=second), asked_of(lm)
    shared = made.read_before(asked) is not None
    assert shared == (name != "t5" and (positions is None or positions[0] == "suffix"))
    found = made.answer(asked)
    assert_like(found, by_hand(lm, first, second, asked))
    assert {one.passes for one in found} == {("candidates", "second")}
    assert set(found[0].timings) == {"candidates", "second"} | ({"before"} if shared else set())


def test_batches_do_not_matter() -> None:
    lm = toy_lm("llama")
    asked = asked_of(lm)
    whole = recursion(lm).answer(asked)
    assert_like(recursion(lm, batch_tokens=1).answer(asked[::-1])[::-1], by_hand(lm, None, None, asked))
    assert [one.text for one in recursion(lm).answer(asked[1:])] == [one.text for one in whole[1:]]
    assert recursion(lm).answer([]) == []


def test_nothing_is_shared_where_only_control_tokens_stand_before() -> None:
    lm = toy_lm("gpt2")
    assert recursion(lm).read_before(asked_of(lm, before=())) is None
    found = recursion(lm).answer(asked_of(lm, before=()))
    assert_like(found, by_hand(lm, None, None, asked_of(lm, before=())))


def test_only_the_unsure_pay() -> None:
    lm = toy_lm("llama")
    asked = asked_of(lm)
    firsts = recursion(lm).first_answers(asked)
    sure = [confidence(one) for one in firsts]
    between = sorted(sure)[1]  # one of the three lies below it
    found = recursion(lm, when=When("below_confidence", between)).answer(asked)
    always = recursion(lm).answer(asked)
    for one, deep, first, value in zip(found, always, firsts, sure, strict=True):
        assert one.confidence == pytest.approx(value, abs=1e-5) and one.first is not None
        if value < between:
            assert one.passes == ("first", "candidates", "second") and one.text == deep.text
            assert one.candidates is not None and deep.candidates is not None
            assert [c.text for c in one.candidates.ranked] == [c.text for c in deep.candidates.ranked]
        else:
            assert one.passes == ("first",) and one.text == first.text and one.candidates is None
            assert "second" not in one.timings
    assert sum(one.second is not None for one in found) == 1


@pytest.mark.parametrize(("threshold", "paying"), [(0.0, 0), (1.5, 3)])
def test_thresholds_at_the_ends(threshold: float, paying: int) -> None:
    lm = toy_lm("gpt2")
    found = recursion(lm, when=When("below_confidence", threshold)).answer(asked_of(lm))
    assert sum(one.second is not None for one in found) == paying


def test_without_any_candidate_the_second_pass_reads_the_question() -> None:
    lm = toy_lm("gpt2")
    asked = asked_of(lm)
    rows = recursion(lm).second_rows(asked, [Candidates((), drawn=4, empty=4)] * 3)
    assert [row.text for row in rows] == [f"question : {q} text :  answer :" for q in QUESTIONS]
    assert all(row.empty for row in rows) and len(recursion(lm).second_answers(rows)) == 3


def test_room_is_kept_for_prompt_and_answer() -> None:
    lm = toy_lm("gpt2")
    asked = asked_of(lm)
    second = prompt_of(lm, 2)
    whole = recursion(lm, second=second).answer(asked)[0].second
    assert whole is not None and whole.dropped == 0
    tight = recursion(lm, second=second, max_tokens=len(whole.context) + 2 + 4 - 1).answer(asked)[0].second
    assert tight is not None and tight.dropped >= 1 and len(tight.listed) + tight.dropped == len(whole.listed)
    with pytest.raises(ShapeError, match="raise the window"):
        recursion(lm, second=second, max_tokens=12).answer(asked)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="the same answer 8 times"):
        Sampling(temperature=0.0)
    with pytest.raises(ConfigError, match="max_new_tokens is 3, but only answer_reserve=2"):
        recursion(toy_lm("gpt2"), answer_reserve=2)


def test_lm_is_untouched_by_training_the_second_pass_and_answering(tmp_path: Path) -> None:
    lm = toy_lm("llama")
    before = state_of(lm.model)
    first, second = prompt_of(lm, 1), prompt_of(lm, 2)
    made, asked = recursion(lm, first=first, second=second), asked_of(lm)
    examples = [
        Example.of(row.context, (41, 3), PromptInput(row.text))
        for row in made.second_rows(asked, made.candidates(asked))
    ]
    start = second.vectors.detach().clone()
    fit(
        second,
        examples=examples,
        loss=lambda some: prompt_loss(lm, second, some),
        out=tmp_path,
        settings=TrainSettings(steps=3, batch_size=3),
        lm=lm,
        progress=False,
    )
    made.answer(asked)
    assert state_of(lm.model) == before
    assert not torch.equal(second.vectors, start)
    lm.assert_unchanged()
