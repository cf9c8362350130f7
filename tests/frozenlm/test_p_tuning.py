"""P-tuning and prompts in slots: where the vectors stand, what the encoder is, where it begins."""

from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.checkpoint import save_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.initializers import from_text
from frozenlm.prompts.interface import PromptInput, prompted
from frozenlm.prompts.p_tuning import KIND, PTuning
from frozenlm.prompts.slots import Slots, SlottedPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Soft, Tokens
from tests.toys import toy_lm

FORMS = ("lama", "fewshot", "mlp")
RAMP = torch.arange(5.0).unsqueeze(1).expand(5, 32)  # row n holds the number n


def written(row: Any) -> list[Any]:
    """A row as numbers: token ids, and the number of each soft vector as text."""
    return [
        *(item for s in row for item in (s.ids if isinstance(s, Tokens) else map(str, s.vectors[:, 0].int().tolist())))
    ]


@pytest.mark.parametrize(
    ("slots", "position", "row"),
    [
        ((5, 0), "prefix", ["0", "1", "2", "3", "4", 7, 8, 9]),
        ((0, 5), "suffix", [7, 8, 9, "0", "1", "2", "3", "4"]),
        ((2, 3), "around", ["0", "1", 7, 8, 9, "2", "3", "4"]),
    ],
)
def test_slots_around_the_context(slots: tuple[int, ...], position: str, row: list[Any]) -> None:
    prompt = SlottedPrompt(RAMP, slots)
    assert prompt.position == position
    (found,) = prompted(prompt, [[Tokens.of([7, 8, 9])]], [PromptInput()])
    assert written(found) == row
    (found,) = prompted(prompt, [[Tokens.of([7]), Tokens.of([8, 9])]], [PromptInput()])  # of any number of pieces
    assert written(found) == row


def test_slots_inside_the_context() -> None:
    """[P1; x; P2; y; P3], y being a piece of its own, as the mask token of a masked LM is."""
    prompt = SlottedPrompt(RAMP, (1, 3, 1))
    assert prompt.position == "around"
    assert written(prompted(prompt, [[Tokens.of([7, 8]), Tokens.of([9])]], [PromptInput()])[0]) == [
        *("0", 7, 8, "1", "2", "3", 9, "4")
    ]
    assert SlottedPrompt(RAMP, (0, 5, 0)).position == "around"
    example = Example((7, 8, 9), (4,), cuts=(2,))
    assert written(prompted(prompt, [example.row], [PromptInput()])[0]) == ["0", 7, 8, "1", "2", "3", 9, "4"]


def test_all_rows_share_the_vectors_of_a_slot() -> None:
    rows = SlottedPrompt(RAMP, (2, 3)).rows([[Tokens.of([7])], [Tokens.of([8, 9])]], [PromptInput()] * 2)
    tensors = {id(s.vectors) for row in rows for s in row if isinstance(s, Soft)}
    assert len(tensors) == 2


@pytest.mark.parametrize("slots", [(), (3,), (0, 0), (1, -1), (1.0, 2), (True, 2)])
def test_slots_that_cannot_be_meant(slots: Any) -> None:
    with pytest.raises(ConfigError, match="expected a tuple of at least two whole numbers"):
        Slots(slots)


def test_contexts_and_vectors_must_fit_the_slots() -> None:
    with pytest.raises(ShapeError, match="stand around 2 pieces of context, this one has 1"):
        prompted(SlottedPrompt(RAMP, (1, 3, 1)), [[Tokens.of([7])]], [PromptInput()])
    with pytest.raises(ShapeError, match="5 vectors for slots"):
        SlottedPrompt(RAMP, (1, 3))


@pytest.mark.parametrize("cuts", [(3, 2), (5,), (-1,)])
def test_cuts_must_lie_in_the_context(cuts: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="rising places in a context of 4 tokens"):
        Example((1, 2, 3, 4), (5,), cuts=cuts)


@pytest.mark.parametrize("lm_name", ["gpt2", "opt", "llama", "t5", "bart"])
def test_embeddings_of_tokens_in_slots_are_those_tokens(lm_name: str) -> None:
    """The strongest test of where slots stand: real embeddings there are the text with these tokens in it."""
    lm = toy_lm(lm_name)
    prompt = SlottedPrompt(lm.embed(torch.tensor([30, 31, 32])), (1, 1, 1))
    with torch.no_grad():
        found, count = prompt_loss(lm, prompt, [Example((7, 8, 9), (40, 41), cuts=(2,))])
        plain, _ = prompt_loss(lm, None, [Example((30, 7, 8, 31, 9, 32), (40, 41))])
    assert count == 2 and torch.equal(found, plain)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("anchor", [True, False])
def test_trained_parameters_by_formula(form: Any, anchor: bool) -> None:
    module = PTuning.create(toy_lm(), (2, 3), form=form, anchor=anchor)
    trained = sum(parameter.numel() for parameter in module.parameters())
    assert trained == PTuning.parameter_count(length=5, hidden_size=32, form=form)


def test_the_shapes_are_the_official_ones() -> None:
    # h = 4, P = 3. An LSTM's direction holds 4 s (input + s + 2) numbers, s being its state.
    def count(form: Any) -> int:
        return PTuning.parameter_count(length=3, hidden_size=4, form=form)

    assert count("mlp") == 3 * 4 + (4 * 4 + 4) + (4 * 4 + 4)
    assert count("lama") == 3 * 4 + 2 * (4 * 2 * (4 + 2 + 2)) * 2 + (4 * 4 + 4) + (4 * 4 + 4)
    assert count("fewshot") == 3 * 4 + 2 * 4 * 4 * (4 + 4 + 2) + 2 * 4 * 4 * (8 + 4 + 2) + (8 * 4 + 4) + (4 * 4 + 4)


@pytest.mark.parametrize("form", FORMS)
def test_it_begins_as_the_soft_prompt_of_that_seed(form: Any) -> None:
    lm = toy_lm()
    plain = SoftPrompt.create(lm, 4, init=from_text("the cat"), seed=3)
    assert torch.equal(PTuning.create(lm, (0, 4), form=form, init=from_text("the cat"), seed=3)(), plain())
    loose = PTuning.create(lm, (0, 4), form=form, anchor=False, seed=3)
    assert loose.anchor is None and not torch.allclose(loose(), plain(), atol=0.1)


def test_every_vector_depends_on_every_embedding() -> None:
    """What ties P-tuning's vectors to each other: the LSTM reads in both directions."""
    module = PTuning.create(toy_lm(), (2, 2), anchor=False)
    for row in range(4):
        module.zero_grad()
        module()[row].sum().backward()
        assert module.embedding.grad is not None and module.embedding.grad.any(dim=1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "gru"}, "form is 'gru'"),
        ({"slots": (0, 0)}, "slots are"),
        ({"anchor": False, "init": from_text("a")}, "leave init out"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PTuning.create(toy_lm(), **({"slots": (1, 1)} | settings))


def test_an_odd_width_and_a_wrong_anchor() -> None:
    with pytest.raises(ConfigError, match="halves the hidden size, which is 33"):
        PTuning(33, (1, 1))
    with pytest.raises(ShapeError, match=r"anchor is \[3, 32\]"):
        PTuning(32, (1, 1), anchor=torch.zeros(3, 32))


@pytest.mark.parametrize(
    "change",
    [{"slots": [1, 1]}, {"slots": "2"}, {"slots": [0, 0]}, {"form": "mlp"}, {"form": None}, {"slots": None}],
)
def test_files_that_do_not_fit(tmp_path: Path, change: dict[str, Any]) -> None:
    lm = toy_lm()
    config = {"slots": [2, 3], "form": "lama", "hidden_size": 32} | change
    tensors = PTuning.create(lm, (2, 3)).state_dict()
    save_module(tmp_path, tensors, config, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError):
        PTuning.load(tmp_path, lm)
