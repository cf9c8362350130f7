"""Neural recursion where it pays: who recurses, and that it changes no answer."""

import pytest

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.candidates import with_prompt
from frozenlm.recursion.selective import NeuralRecursion
from frozenlm.recursion.when import When, confidence
from frozenlm.rows import Tokens
from tests.frozenlm.recursion.connectors import open_model
from tests.toys import toy_lm

ROWS = [[Tokens.of(ids)] for ids in ([20, 21, 22], [30, 31, 32, 33, 34, 35], [40], [20, 50], [60, 61, 62, 63])]
SIZES = {"max_new_tokens": 5, "stop": ()}

every_side = pytest.mark.parametrize("side", ["right", "left"])
every_plain = pytest.mark.parametrize("plain", [None, "prefix", "suffix"])


def parts(side: str = "right", plain: str | None = None, name: str = "llama", **sizes):
    """All passes, and the plain pass's prompt, which is longer than that of the last pass."""
    lm = toy_lm(name, padding_side=side)
    return open_model(lm, "suffix", **sizes), SoftPrompt.create(lm, 4, position=plain, seed=5) if plain else None


def below(model, plain, threshold: float) -> NeuralRecursion:
    return NeuralRecursion(model, plain=plain, when=When("below_confidence", threshold))


def middle(model, plain) -> float:
    """A threshold that spares some of the rows."""
    return sorted(one.confidence for one in below(model, plain, 0.0).answer(ROWS, **SIZES))[2]


def same(one, other) -> None:
    assert one.ids == other.ids
    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@every_side
@every_plain
@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_the_sure_get_one_plain_pass_and_the_others_what_all_passes_say(name, side, plain):
    model, prompt = parts(side, plain, name)
    threshold = middle(model, prompt)
    found = below(model, prompt, threshold).answer(ROWS, **SIZES)
    once = model.lm.generate(with_prompt(ROWS, prompt), **SIZES)
    always = NeuralRecursion(model).answer(ROWS, **SIZES)
    assert [one.passes for one in always] == [("pass_1", "pass_2")] * 5
    assert sum(one.passes == ("plain",) for one in found) == 3  # of five, two lie below the third
    for one, plainly, fully in zip(found, once, always, strict=True):
        same(one.plain, plainly)
        assert one.confidence == pytest.approx(confidence(plainly), abs=1e-5)
        recursed = one.confidence < threshold
        assert one.passes == (("plain", "pass_1", "pass_2") if recursed else ("plain",))
        assert set(one.timings) == ({"plain", "passes"} if recursed else {"plain"})
        same(one.generation, fully.generation if recursed else plainly)


@every_plain
def test_the_batch_does_not_matter(plain):
    model, prompt = parts("left", plain, passes=3, shared=False)
    some = below(model, prompt, middle(model, prompt))
    together = some.answer(ROWS, **SIZES)
    for apart in (some.answer(ROWS, batch_tokens=1, **SIZES), [some.answer([row], **SIZES)[0] for row in ROWS]):
        for one, other in zip(together, apart, strict=True):
            assert one.passes == other.passes
            same(one.generation, other.generation)


@pytest.mark.parametrize("options", [{"do_sample": True, "seed": 7}, {"num_beams": 3}])
def test_settings_are_those_of_the_passes_and_the_plain_pass_is_greedy(options):
    model, _ = parts()
    found = below(model, None, middle(model, None)).answer(ROWS, **SIZES, **options)
    always = model.generate(ROWS, **SIZES, **options)
    for one, plainly, fully in zip(found, model.lm.generate(ROWS, **SIZES), always, strict=True):
        same(one.plain, plainly)
        same(one.generation, plainly if one.passes == ("plain",) else fully)


@every_plain
def test_the_extremes(plain):
    model, prompt = parts(plain=plain)
    assert {one.passes for one in below(model, prompt, 0.0).answer(ROWS, **SIZES)} == {("plain",)}
    always = model.generate(ROWS, **SIZES)
    for one, fully in zip(below(model, prompt, 2.0).answer(ROWS, **SIZES), always, strict=True):
        same(one.generation, fully)


def test_the_mode_stays_and_nothing_of_the_lm_changes():
    model, prompt = parts(plain="suffix", dropout=0.5)
    some = below(model, prompt, 2.0)
    assert [one.generation for one in some.answer(ROWS, **SIZES)] == [
        one.generation for one in some.answer(ROWS, **SIZES)
    ]
    assert model.module.training
    model.lm.assert_unchanged()


def test_what_is_refused():
    model, prompt = parts(plain="suffix")
    with pytest.raises(ConfigError, match="one sequence"):
        below(model, prompt, 0.5).answer(ROWS, num_return_sequences=2, num_beams=2)
    # The window is 96: 90 tokens, 4 of the longer prompt and 2 more to read fit, one more does not.
    long = [[Tokens.of([7] * 90)]]
    below(model, prompt, 2.0).answer(long, max_new_tokens=3, stop=())
    with pytest.raises(ShapeError, match="row 0 is too long"):
        below(model, prompt, 2.0).answer(long, max_new_tokens=4)
