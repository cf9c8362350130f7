"""What is made of decoded pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.surface import clean, close_numbers, spelling_in

PASSAGE = (
    "In 1895 Wilhelm Röntgen and Jean-Paul Marat of the U.S. Army paid $1,350.50 at 10:30 in the Straße of 東京, "
    "3.5 % away; Zoe\u0308 too."
)


@pytest.mark.parametrize(
    ("decoded", "expected"),
    [
        ("wilhelm rontgen", "Wilhelm Röntgen"),
        ("jean - paul", "Jean-Paul"),
        ("jean - paul marat", "Jean-Paul Marat"),
        ("u. s.", "U.S."),
        ("the u. s. army", "the U.S. Army"),
        ("1, 350. 50", "1,350.50"),
        ("$ 1, 350", "$1,350"),
        ("10 : 30", "10:30"),
        ("strasse", "Straße"),
        ("東 京", "東京"),
        ("zoe", "Zoe\u0308"),
        ("3. 5 %", "3.5 %"),
    ],
)
def test_an_answer_gets_its_spelling_in_the_passage(decoded: str, expected: str) -> None:
    assert clean(decoded, ["nothing here", PASSAGE]) == expected


@pytest.mark.parametrize("word", ["arm", "a way", "roentgen", "stras", "wilhelm  marat", "", "   "])
def test_only_whole_words_of_the_passage_count(word: str) -> None:
    assert spelling_in(PASSAGE, word) is None
    assert clean(word, [PASSAGE]) == " ".join(word.split())


def test_the_first_passage_that_has_it_decides() -> None:
    assert clean("paris", ["PARIS is", "Paris is"]) == "PARIS"


@pytest.mark.parametrize(
    ("decoded", "closed"),
    [
        ("1, 350", "1,350"),
        ("12, 345, 678 people", "12,345,678 people"),
        ("1 , 350", "1,350"),
        ("3. 5 million", "3.5 million"),
        ("10 : 30", "10:30"),
        ("1990 - 91", "1990-91"),
        ("$ 12", "$12"),
        ("5 %", "5%"),
        ("in 1990, 200 men", "in 1990, 200 men"),
        ("1, 2 and 3", "1, 2 and 3"),
        ("1, 3500", "1, 3500"),
        ("room 5. next", "room 5. next"),
        ("jean - paul", "jean - paul"),
        ("1,350", "1,350"),
    ],
)
def test_numbers(decoded: str, closed: str) -> None:
    assert close_numbers(decoded) == closed
    assert clean(decoded) == closed


def test_both_can_be_switched_off() -> None:
    assert clean(" 1, 350\n", [PASSAGE], join_digits=False, as_in_passage=False) == "1, 350"
    assert clean("rontgen", [PASSAGE], as_in_passage=False) == "rontgen"


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_taken(context: str, answer: str) -> None:
    assert isinstance(clean(answer, [context]), str)


@given(st.lists(st.sampled_from(["Röntgen", "U.S.", "1,350", "Jean-Paul", "the", "東京"]), min_size=1, max_size=6))
def test_a_passages_own_words_stay_as_they_are(words: list[str]) -> None:
    text = " ".join(words)
    assert clean(text, [text]) == text
