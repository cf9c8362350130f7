"""Examples of plain text: nothing is lost in silence, and what is asked is true."""

from pathlib import Path
from typing import Any

import pytest

from frozenlm.errors import ConfigError
from frozenlm.lm_tasks import mean_loss, prompt_loss
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.text_pretraining import TASK, text_examples
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit
from tests.toys import BOS, EOS, NAMES, toy_lm

SENTENCES = ["the cat sat.", "the dog sat!", "who was the king?", "the river is blue.", "the city is red."]
OTHERS = ["paris is in france.", "berlin is in germany.", "london is in england."]
STORY, OTHER = " ".join(SENTENCES), " ".join(OTHERS)
LABELS = ("one", "two", "three")
WORDING = "{first} | {second} ? "


def test_windows_lose_no_token() -> None:
    lm = toy_lm()
    ids = lm.encode(STORY)
    found = text_examples([STORY, "", "cat"], lm, context=6, answer=3)
    assert len(ids) == 23 and found.left_out == 2
    frame = len(lm.bos_ids)
    parts = [(one.context[frame:], one.answer) for one in found.examples]
    assert [i for pair in parts for run in pair for i in run] == ids
    assert [(len(c), len(a)) for c, a in parts] == [(6, 3), (6, 3), (3, 2)]  # the rest in the same proportion
    assert all(one.context[:frame] == tuple(lm.bos_ids) for one in found.examples)
    assert {one.source.task for one in found.examples} == {TASK}


@pytest.mark.parametrize("length", range(2, 12))
def test_the_last_window_has_both_parts(length: int) -> None:
    (one,) = text_examples(["the " * length], toy_lm(), context=8, answer=3).examples
    assert len(one.context) - len(toy_lm().bos_ids) + len(one.answer) == length
    assert 1 <= len(one.answer) <= 3


def pairs(**more: Any) -> Any:
    return text_examples([STORY, OTHER, "too short."], toy_lm(), objective="next_sentence", labels=LABELS, **more)


def test_pairs_of_sentences_are_what_the_label_says() -> None:
    lm = toy_lm()
    found = pairs(wording=WORDING)
    assert found.left_out == 1 and len(found.examples) == 4 + 2
    labels = [lm.encode(label)[0] for label in LABELS]
    asked = []
    for one in found.examples:
        first, second = one.source.text.removesuffix(" ? ").split(" | ")
        (own,) = [text for text in (SENTENCES, OTHERS) if first in text]
        label = labels.index(one.answer[0])
        asked.append(label)
        assert one.answer == (labels[label], EOS)
        follows = own.index(first) + 1 < len(own) and own[own.index(first) + 1] == second
        assert (follows, second in own) == {0: (True, True), 1: (False, True), 2: (False, False)}[label]
    assert sorted(asked) == [0, 0, 1, 1, 2, 2]


def test_the_same_seed_draws_the_same_pairs() -> None:
    assert pairs(seed=3) == pairs(seed=3)
    assert pairs(seed=3) != pairs(seed=4)


def test_pairs_that_are_too_long_are_counted() -> None:
    whole, some = pairs(wording=WORDING), pairs(wording=WORDING, context=10)
    assert some.left_out > whole.left_out
    assert some.left_out + len(some.examples) == whole.left_out + len(whole.examples)
    assert all(len(one.context) <= 10 + 1 for one in some.examples) and BOS not in whole.examples[0].answer


def test_slots_in_a_sentence_are_text() -> None:
    odd = "the {second} cat. the dog. the king."
    found = text_examples([odd, OTHER], toy_lm(), objective="next_sentence", labels=LABELS, wording=WORDING)
    assert found.examples[0].source.text.startswith("the {second} cat. | ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "cloze"}, "objective is 'cloze'"),
        ({"context": 0}, "context 0 and answer 32"),
        ({"context": 90, "answer": 20}, "context 90 and answer 20 tokens; expected at least 1 each, 9. together"),
        ({"objective": "next_sentence", "context": 95}, "context 95 and a longest label of 2 tokens; .*, 96 together"),
        ({"objective": "next_sentence", "context": 94, "soft_tokens": 1}, "95 together at most, beside 1 soft tokens"),
        (
            {"objective": "next_sentence", "context": 64, "labels": ["one", "two", "the " * 32]},
            "context 64 and a longest label of 33 tokens",
        ),
        ({"objective": "next_sentence", "wording": "{first}"}, "expected the slots"),
        ({"objective": "next_sentence", "labels": ["one", "two"]}, "labels are"),
        ({"objective": "next_sentence", "labels": ["one", "two", "two"]}, "tells apart"),
        ({"objective": "next_sentence", "labels": ["one", "two", ""]}, "tells apart"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text_examples([STORY, OTHER], toy_lm(), **({"labels": LABELS} | settings))


def test_pairs_take_no_room_for_the_answer_of_windows() -> None:
    lm = toy_lm()  # 96 columns; a label and its end are two, a window's answer would be 32
    found = text_examples([STORY, OTHER], lm, objective="next_sentence", labels=LABELS, context=91, soft_tokens=3)
    assert max(len(one.context) + len(one.answer) + 3 for one in found.examples) <= 96


def test_texts_that_give_nothing() -> None:
    with pytest.raises(ConfigError, match="nothing to learn from: 2 were too short"):
        text_examples(["", "cat"], toy_lm(), labels=LABELS)
    with pytest.raises(ConfigError, match="two texts of at least three sentences, got 1 of 2"):
        text_examples([STORY, "a."], toy_lm(), objective="next_sentence", labels=LABELS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", ["continuation", "next_sentence"])
def test_a_prompt_is_trained_on_text(tmp_path: Path, name: str, objective: Any) -> None:
    lm = toy_lm(name)
    examples = text_examples([STORY, OTHER], lm, objective=objective, labels=LABELS, context=40, answer=8).examples
    prompt = SoftPrompt.create(lm, 2)
    before = mean_loss(lm, prompt, examples)
    fit(
        prompt,
        examples=examples,
        loss=lambda batch: prompt_loss(lm, prompt, batch),
        out=tmp_path,
        settings=TrainSettings(steps=6, batch_size=4, learning_rate=0.05),
        lm=lm,
        progress=False,
    )
    assert mean_loss(lm, prompt, examples) < before
