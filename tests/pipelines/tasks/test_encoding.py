"""From a row to token ids: what stands where, what is cut and counted, and settings without room."""

from typing import Any

import pytest

from frozenlm.lm import FrozenLM
from frozenlm.prompts.idpg import IDPG
from frozenlm.prompts.input_dependent import InputDependentPrompt
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from pipelines.errors import ConfigError
from pipelines.tasks.encoding import InputCounts, RowEncoder, source_of, too_long
from pipelines.tasks.task import TaskRow
from tests.toys import BOS, EOS, SEP, UNK, VOCABULARY, WINDOW, toy_encoder, toy_encoder_tokenizer, toy_lm, toy_model

TEN = "one two three a b c d e f g"


def ids(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in text.split()]


def coder_for(name: str = "llama", **settings: Any) -> RowEncoder:
    return RowEncoder(toy_lm(name), **{"max_tokens": 30, "keep_end": 2, "answer_tokens": 8, **settings})


def row(text: str = "the cat", target: str = "red", choices: tuple[str, ...] = ()) -> TaskRow:
    return TaskRow("t/train/1", "t", text, target, choices)


def test_a_short_input_is_read_whole() -> None:
    coder = coder_for(max_tokens=10)
    assert coder.context(TEN) == [*coder.lm.bos_ids, *ids(TEN)]
    assert coder.fitted("the cat") == ([*coder.lm.bos_ids, *ids("the cat")], False)
    assert coder.counts == InputCounts(inputs=2, inputs_cut=0, answers_cut=0)


@pytest.mark.parametrize(
    ("max_tokens", "keep_end", "kept"),
    [(9, 2, "one two three a b c d f g"), (6, 2, "one two three a f g"), (4, 3, "one e f g"), (3, 0, "one two three")],
)
def test_a_long_input_keeps_its_beginning_and_its_end(max_tokens: int, keep_end: int, kept: str) -> None:
    coder = coder_for(max_tokens=max_tokens, keep_end=keep_end)
    assert coder.fitted(TEN) == ([*coder.lm.bos_ids, *ids(kept)], True)
    assert (coder.counts.inputs, coder.counts.inputs_cut) == (1, 1)


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("llama", WINDOW - 1 - 20 - 6),  # [BOS], soft tokens and answer share the window
        ("t5", 90),  # no window: its encoder counts distances
        ("bart", WINDOW - 2 - 20),  # [BOS] and [SEP]; the answer stands in the decoder
    ],
)
def test_the_window_leaves_so_much_room(name: str, room: int) -> None:
    lm = FrozenLM.from_model(toy_model(name), toy_encoder_tokenizer("bert" if name != "t5" else "t5"))
    coder = RowEncoder(lm, max_tokens=90, answer_tokens=6, soft_tokens=20)
    assert coder.room == room
    context = coder.context("cat " * 500)
    assert context == [*lm.bos_ids, *ids("cat") * room, *lm.close_ids]
    assert (lm.bos_ids, lm.close_ids) == {"llama": ((BOS,), ()), "t5": ((), (EOS,)), "bart": ((BOS,), (SEP,))}[name]


def test_an_example_ends_and_a_candidate_does_not() -> None:
    coder = coder_for()
    example = coder.example(row())
    assert list(example.answer) == [*ids("red"), EOS]
    assert list(example.context) == coder.context("the cat")
    assert example.source == PromptInput("the cat", "t") == source_of(row())
    context, candidates, source = coder.scored(row(choices=("red", "dark blue")))
    assert (context, source) == (coder.context("the cat"), source_of(row()))
    assert candidates == [coder.candidate("red"), coder.candidate("dark blue")] and candidates[0] == ids("red")
    assert coder.scored(row())[1] == []


def test_an_answer_is_worded() -> None:
    coder = coder_for(answer="the {answer} .")
    assert coder.candidate("cat") == ids("the cat .")
    assert coder.candidate("{answer}") == [*ids("the"), UNK, *ids("answer"), UNK, *ids(".")]  # once, and no further


@pytest.mark.parametrize(("words", "kept", "cut"), [(2, 2, 0), (3, 3, 0), (4, 3, 1), (9, 3, 1)])
def test_an_answer_to_learn_from_is_cut_and_counted(words: int, kept: int, cut: int) -> None:
    coder = coder_for(answer_tokens=4)  # one of them ends the answer
    example = coder.example(row(target="cat " * words))
    assert list(example.answer) == [*ids("cat " * kept), EOS]
    assert coder.counts == InputCounts(inputs=1, inputs_cut=0, answers_cut=cut)


def test_an_answer_without_a_token() -> None:
    coder = coder_for(answer="{answer}")
    with pytest.raises(ConfigError, match="the answer ' ' has no token"):
        coder.candidate(" ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer": "x"}, r"input.answer needs the slot \{answer\}, got 'x'"),
        ({"max_tokens": 8, "keep_end": 8}, "input.max_tokens is 8, but input.keep_end alone is 8"),
        ({"soft_tokens": 90}, r"window of 96 tokens leaves -\d+ for an input beside 90 soft tokens"),
        ({"max_tokens": 90, "answer_tokens": 60, "keep_end": 40}, "an answer of 60, but input.keep_end alone is 40"),
    ],
)
def test_settings_without_room(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        coder_for(**settings)


def test_without_a_window_only_the_settings_can_clash() -> None:
    with pytest.raises(ConfigError, match=r"input.max_tokens is 8"):
        coder_for("t5", max_tokens=8, keep_end=9)


def test_only_a_module_with_an_encoder_finds_inputs_too_long() -> None:
    lm, inputs = toy_lm("llama"), [PromptInput("cat " * 8), PromptInput("cat " * 9)]
    encoder = toy_encoder("bert", max_length=10)  # [BOS] and [SEP] among them
    assert too_long(None, inputs) == too_long(SoftPrompt.create(lm, 2), inputs) == [False, False]
    assert too_long(IDPG.create(lm, encoder, 2), inputs) == [False, True]
    tuned = InputDependentPrompt.create(lm, toy_encoder("bert"), 2, encoder_prompt=WINDOW - 10, width=8, heads=2)
    assert too_long(tuned, inputs) == [False, True]
