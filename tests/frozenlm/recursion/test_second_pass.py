"""The second pass's rows: what is listed, in which order, and what is left out for want of room."""

import pytest

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.recursion.candidates import Candidate
from frozenlm.recursion.second_pass import SecondPassTemplate, second_pass_rows
from tests.toys import toy_lm

RANKED = [Candidate("paris", 5, -1.0), Candidate("london", 2, -2.0), Candidate("berlin", 1, -3.0)]
QUESTION = "where was the king ?"
TEMPLATE = SecondPassTemplate("question : {question} text : {candidates} answer :")


def rows_of(template: SecondPassTemplate = TEMPLATE, ranked: list[Candidate] = RANKED, **options):
    return second_pass_rows(toy_lm("gpt2"), [QUESTION], [ranked], template, **options)[0]


def test_row_is_the_filled_template_behind_what_was_there() -> None:
    lm = toy_lm("gpt2")
    row = rows_of(before=[[2, 9, 9]])
    assert row.text == "question : where was the king ? text : paris ; london ; berlin answer :"
    assert row.context == (2, 9, 9, *lm.encode(row.text))
    assert (row.behind, row.dropped, row.empty) == (3, 0, False)
    assert rows_of().context == (*lm.bos_ids, *lm.encode(row.text))


def test_an_encoder_is_told_where_its_input_ends() -> None:
    lm = toy_lm("t5")
    row = second_pass_rows(lm, [QUESTION], [RANKED], TEMPLATE)[0]
    assert row.context == (*lm.bos_ids, *lm.encode(row.text), *lm.close_ids)


@pytest.mark.parametrize(
    ("order", "listed"),
    [("best_first", ["paris", "london", "berlin"]), ("best_last", ["berlin", "london", "paris"])],
)
def test_order(order: str, listed: list[str]) -> None:
    row = rows_of(SecondPassTemplate(TEMPLATE.text, separator=" or ", order=order))  # type: ignore[arg-type]
    assert [one.text for one in row.listed] == listed
    assert " or ".join(listed) in row.text


def test_shuffled_order_is_a_questions_own() -> None:
    def order(question: str, seed: int = 0) -> list[str]:
        template = SecondPassTemplate(TEMPLATE.text, order="shuffled", seed=seed)
        row = second_pass_rows(toy_lm("gpt2"), [question], [RANKED], template)[0]
        assert sorted(one.text for one in row.listed) == ["berlin", "london", "paris"]
        return [one.text for one in row.listed]

    questions = [f"who {'is ' * n}the king ?" for n in range(6)]
    assert [order(q) for q in questions] == [order(q) for q in questions]
    assert len({tuple(order(q)) for q in questions}) > 1
    assert [order(q) for q in questions] != [order(q, seed=1) for q in questions]


@pytest.mark.parametrize("order", ["best_first", "best_last", "shuffled"])
def test_whole_candidates_go_worst_first(order: str) -> None:
    template = SecondPassTemplate(TEMPLATE.text, order=order)  # type: ignore[arg-type]
    whole = len(rows_of(template).context)
    assert rows_of(template, answer_reserve=4, soft_tokens=3, max_tokens=whole + 7).dropped == 0
    tight = rows_of(template, answer_reserve=4, soft_tokens=3, max_tokens=whole + 6)
    assert {one.text for one in tight.listed} == {"paris", "london"} and tight.dropped == 1
    assert len(tight.context) == whole - 2  # berlin and its separator
    tighter = rows_of(template, answer_reserve=4, soft_tokens=3, max_tokens=whole + 2)
    assert ([one.text for one in tighter.listed], tighter.dropped) == ([], 3)
    assert tighter.empty and "paris" not in tighter.text


def test_a_question_that_does_not_fit_at_all() -> None:
    with pytest.raises(ShapeError, match=r"question 0 takes 11 tokens without any candidate.*raise the window"):
        rows_of(answer_reserve=4, max_tokens=12)


def test_no_candidate_leaves_the_question() -> None:
    row = rows_of(SecondPassTemplate(TEMPLATE.text, none="one"), [])
    assert row.text == "question : where was the king ? text : one answer :"
    assert row.empty and row.dropped == 0


def test_a_candidate_cannot_look_like_two() -> None:
    row = rows_of(ranked=[Candidate("paris;london", 2, -1.0), Candidate(" ; ", 1, -2.0)])
    assert "text : paris london answer :" in row.text
    assert (len(row.listed), row.dropped) == (1, 1)  # nothing was left of the second


def test_braces_and_the_templates_words_are_not_for_texts() -> None:
    lm = toy_lm("gpt2")
    row = second_pass_rows(
        lm,
        ["what is {candidates} answer : ?"],
        [[Candidate("{question} answer : red", 1, -1.0)]],
        TEMPLATE,
        clean=lambda text: text.replace("answer :", "answer"),
    )[0]
    assert row.text == "question : what is {candidates} answer ? text : {question} answer red answer :"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question : {question} answer :", "{candidates} 0 times"),
        ("text : {candidates} answer :", "{question} 0 times"),
        ("{question} {candidates} {candidates}", "{candidates} 2 times"),
        ("{question} {candidates} {passage}", "has the slot {passage}"),
        ("{question} {candidates!r}", "has the slot {candidates}; allowed"),
        ("{question} {candidates", "cannot be read"),
    ],
)
def test_templates_that_cannot_be_filled(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SecondPassTemplate(text)
    assert message in str(error.value)


@pytest.mark.parametrize("changes", [{"separator": "  "}, {"order": "worst_first"}])
def test_bad_settings(changes: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        SecondPassTemplate(**changes)


def test_lists_of_different_lengths() -> None:
    with pytest.raises(ShapeError, match="1 questions, 0 lists of candidates"):
        second_pass_rows(toy_lm("gpt2"), [QUESTION], [], TEMPLATE)
