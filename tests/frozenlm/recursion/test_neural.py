"""Two and more passes: the closed gate is the plain LM, causality, prompts, decoding with caches against without."""

import pytest
import torch

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.loss import mean_recursion_loss, recursion_loss
from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.sizes import ConnectorSizes
from frozenlm.rows import Soft, Tokens
from tests.frozenlm.recursion.connectors import open_connector, open_model
from tests.toys import DECODERS, toy_lm

PROMPTS = [[20, 21, 22], [30, 31, 32, 33, 34, 35], [40]]
ROWS = [[Tokens.of(ids)] for ids in PROMPTS]
ANSWERS = [[50, 51], [60], [70, 71, 72]]
EXAMPLES = [Example.of(*pair) for pair in zip(PROMPTS, ANSWERS, strict=True)]
POSITIONS = (None, "prefix", "suffix")
SIZES = ({}, {"passes": 3, "shared": False, "depth": 2})

every_lm = pytest.mark.parametrize("name", DECODERS)
every_side = pytest.mark.parametrize("side", ["right", "left"])
every_position = pytest.mark.parametrize("position", POSITIONS)
every_size = pytest.mark.parametrize("sizes", SIZES, ids=["two passes", "three passes"])


def prompt_row(model, row, answer=()):
    """What a plain LM reads in one pass, the prompt included."""
    text, end = list(row), [Tokens.of(answer)] if answer else []
    if model.prompt is None:
        return [*text, *end]
    segment = model.prompt.segment()
    return [segment, *text, *end] if model.prompt.position == "prefix" else [*text, segment, *end]


# --- the gate at zero


@every_lm
@every_side
def test_a_closed_gate_is_the_plain_lm_to_the_bit(name, side):
    lm = toy_lm(name, padding_side=side)
    for sizes in SIZES:
        model = RecursiveLM(lm, Connector.create(lm, ConnectorSizes(**sizes)))
        with torch.no_grad():
            ours, plain = model.forward(ROWS), lm.forward(ROWS).logits
            assert all(torch.equal(*pair) for pair in zip(ours, plain, strict=True))
            ours, plain = model.token_logprobs(ROWS, ANSWERS), lm.token_logprobs(ROWS, ANSWERS)
            assert all(torch.equal(*pair) for pair in zip(ours, plain, strict=True))
        assert model.generate(ROWS, max_new_tokens=4) == lm.generate(ROWS, max_new_tokens=4)
        beams = {"max_new_tokens": 4, "num_beams": 2}
        assert model.generate(ROWS, **beams) == lm.generate(ROWS, **beams)


@every_position
@every_side
def test_a_closed_gate_with_a_prompt_is_prompt_tuning(position, side):
    lm = toy_lm("llama", padding_side=side)
    prompt = None if position is None else SoftPrompt.create(lm, 3, position=position)
    model = RecursiveLM(lm, Connector.create(lm), prompt)
    ours, units = recursion_loss(model, EXAMPLES)
    theirs, their_units = prompt_loss(lm, prompt, EXAMPLES)
    assert units == their_units == 6
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    rows = [prompt_row(model, row) for row in ROWS]
    made, wanted = model.generate(ROWS, max_new_tokens=4), lm.generate(rows, max_new_tokens=4)
    assert [one.ids for one in made] == [one.ids for one in wanted]
    # A row of two vectors in place of tokens reads like any other.
    soft = [[Soft(lm.embed(torch.tensor(ids)))] for ids in PROMPTS]
    torch.testing.assert_close(model.token_logprobs(soft, ANSWERS), model.token_logprobs(ROWS, ANSWERS))


# --- what the passes are


@every_lm
@every_side
@every_position
def test_two_passes_are_lm_connector_lm(name, side, position):
    """Against the same by hand: one row at a time, without padding, with the transformers model itself."""
    lm = toy_lm(name, padding_side=side)
    model = open_model(lm, position)
    with torch.no_grad():
        found = model.token_logprobs(ROWS, ANSWERS)
        for ids, answer, ours in zip(PROMPTS, ANSWERS, found, strict=True):
            read = torch.tensor([[*ids, *answer[:-1]]])
            embeds = lm.embed(read)
            states = lm.model.base_model(input_ids=read).last_hidden_state
            vectors = model.connector(embeds, states, torch.ones_like(read))[0]
            pieces = {
                None: [vectors],
                "prefix": [model.prompt.vectors, vectors] if position else [],
                "suffix": [vectors[: len(ids)], model.prompt.vectors, vectors[len(ids) :]] if position else [],
            }[position]
            logits = lm.model(inputs_embeds=torch.cat(pieces).unsqueeze(0)).logits[0, -len(answer) :]
            wanted = logits.log_softmax(dim=1).gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


@every_position
@every_size
def test_a_token_changes_nothing_before_it(position, sizes):
    model = open_model(toy_lm("llama"), position, **sizes)
    ids = [20, 21, 22, 23, 24, 25]
    with torch.no_grad():
        (before,) = model.forward([[Tokens.of(ids)]])
        for changed in range(len(ids)):
            other = [*ids[:changed], 99, *ids[changed + 1 :]]
            (after,) = model.forward([[Tokens.of(other)]])
            torch.testing.assert_close(before[:changed], after[:changed], atol=1e-5, rtol=0)
            assert bool(((before[changed:] - after[changed:]).abs().amax(dim=1) > 1e-2).all())


@every_position
@every_size
def test_batch_mates_and_padding_do_not_matter(position, sizes):
    together = {}
    for side in ("left", "right"):
        model = open_model(toy_lm("gpt2", padding_side=side), position, **sizes)
        together[side] = model.token_logprobs(ROWS, ANSWERS)
        for row, answer, found in zip(ROWS, ANSWERS, together[side], strict=True):
            torch.testing.assert_close(model.token_logprobs([row], [answer])[0], found, atol=1e-4, rtol=0)
    torch.testing.assert_close(together["left"], together["right"], atol=1e-4, rtol=0)


def test_each_pass_adds_something():
    lm = toy_lm("llama")
    one, two, three = (
        lm.forward(ROWS).logits[1],
        open_model(lm).forward(ROWS)[1],
        open_model(lm, passes=3).forward(ROWS)[1],
    )
    assert not torch.allclose(one, two, atol=0.1) and not torch.allclose(two, three, atol=0.1)


# --- decoding


def uncached(model, row, count):
    """Greedy ids and the log-probabilities of each, every row run anew for every token."""
    ids, logprobs = [], []
    for _ in range(count):
        candidates = torch.arange(model.lm.vocab_size).unsqueeze(1).tolist()
        many = [[*row, Tokens.of(ids)]] if ids else [row]
        if model.prompt is not None and model.prompt.position == "suffix":
            # The prompt stands behind the context, not behind what has been generated.
            scores = torch.stack(
                [
                    one[-1]
                    for one in model.token_logprobs(
                        [row] * len(candidates), [[*ids, *candidate] for candidate in candidates]
                    )
                ]
            )
        else:
            (logits,) = model.forward(many)
            scores = logits[-1].log_softmax(dim=0)
        ids.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return ids, logprobs


@every_lm
@every_side
@every_position
def test_cached_decoding_equals_decoding_anew_each_time(name, side, position):
    model = open_model(toy_lm(name, padding_side=side), position)
    with torch.no_grad():
        made = model.generate(ROWS, max_new_tokens=4, stop=())
        for row, mine in zip(ROWS, made, strict=True):
            ids, logprobs = uncached(model, row, len(mine.ids))
            assert mine.ids == ids
            assert mine.logprobs == pytest.approx(logprobs, abs=1e-4)


@every_side
@every_position
@every_size
def test_logprobs_of_what_is_decoded_are_those_of_a_whole_pass(side, position, sizes):
    """Sampling and beams, several sequences a row and some that end early: the caches follow."""
    model = open_model(toy_lm("llama", padding_side=side), position, **sizes)
    for options in (
        {"do_sample": True, "temperature": 3.0, "num_return_sequences": 3, "seed": 1, "stop": ("a", "e")},
        {"num_beams": 3, "num_return_sequences": 2, "stop": ()},
    ):
        found = model.generate(ROWS, max_new_tokens=6, **options)
        for row, generations in zip(ROWS, found, strict=True):
            for one in generations:
                (wanted,) = model.token_logprobs([row], [one.ids])
                assert one.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)


@every_position
def test_the_batch_does_not_matter_to_decoding(position):
    model = open_model(toy_lm("opt"), position)
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "seed": 7}):
        together = model.generate(ROWS, max_new_tokens=5, **options)
        apart = model.generate(ROWS, max_new_tokens=5, batch_tokens=1, **options)
        assert [one.ids for one in together] == [one.ids for one in apart]


def test_decoding_is_without_dropout_and_leaves_the_mode_as_it_was():
    model = open_model(toy_lm(), dropout=0.5)
    made = [model.generate(ROWS, max_new_tokens=4) for _ in range(2)]
    assert made[0] == made[1] and model.module.training and model.connector.training
    assert mean_recursion_loss(model, EXAMPLES) == mean_recursion_loss(model, EXAMPLES)
    model.module.eval()
    model.generate(ROWS, max_new_tokens=2)
    assert not model.connector.training


def test_a_prompt_of_any_method_gets_what_it_is_written_from():
    class TwoPrompts(torch.nn.Module):
        """One vector a task."""

        position = "suffix"
        length = 1

        def __init__(self):
            super().__init__()
            self.vectors = torch.nn.Parameter(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))

        def segments(self, inputs):
            return [Soft(self.vectors[int(one.task)].unsqueeze(0)) for one in inputs]

        def save(self, folder, lm):
            raise NotImplementedError

    lm = toy_lm()
    model = RecursiveLM(lm, open_connector(lm), TwoPrompts())
    sources = [PromptInput(task="0"), PromptInput(task="1"), PromptInput(task="0")]
    together = model.token_logprobs(ROWS, ANSWERS, sources=sources)
    for task in (0, 1):
        alone = RecursiveLM(lm, model.connector, SoftPrompt(model.prompt.vectors[task : task + 1]))
        for number in (n for n, source in enumerate(sources) if source.task == str(task)):
            (wanted,) = alone.token_logprobs([ROWS[number]], [ANSWERS[number]])
            torch.testing.assert_close(together[number], wanted, atol=1e-4, rtol=0)
    examples = [Example.of(e.context, e.answer, s) for e, s in zip(EXAMPLES, sources, strict=True)]
    assert recursion_loss(model, examples)[0].item() == pytest.approx(-torch.cat(together).sum().item(), rel=1e-5)
    made = model.generate(ROWS, sources=sources, max_new_tokens=2, stop=())
    assert made[1].ids == model.generate(ROWS[1:2], sources=sources[1:2], max_new_tokens=2, stop=())[0].ids
    with pytest.raises(ShapeError, match="3 rows, but 1 sources"):
        model.generate(ROWS, sources=sources[:1])


def test_bfloat16_lm_with_a_float32_connector():
    lm = toy_lm("llama")
    half = type(lm).from_model(lm.model.to(torch.bfloat16), lm.tokenizer)
    model = RecursiveLM(half, Connector.create(half), SoftPrompt.create(half, 2))
    assert all(p.dtype == torch.float32 for p in model.module.parameters())
    plain = RecursiveLM(half, Connector.create(half))
    assert all(torch.equal(*pair) for pair in zip(plain.forward(ROWS), half.forward(ROWS).logits, strict=True))
    recursion_loss(model, EXAMPLES)[0].backward()
    model.generate(ROWS, max_new_tokens=3)


# --- bad input


def test_what_cannot_be_run_is_refused():
    lm = toy_lm()
    model = open_model(lm, "suffix")
    with pytest.raises(ConfigError, match="needs a decoder-only LM"):
        RecursiveLM(toy_lm("t5"), model.connector)
    with pytest.raises(ShapeError, match="vectors 32 wide, the LM's embeddings are 16"):
        RecursiveLM(toy_lm(n_embd=16), model.connector)
    with pytest.raises(ShapeError, match="answer 0 is empty"):
        model.token_logprobs(ROWS[:1], [[]])
    with pytest.raises(ShapeError, match="row 0 is empty"):
        model.token_logprobs([[Tokens(())]], [[5, 6]])
    with pytest.raises(ShapeError, match="2 rows, but 1 answers"):
        model.token_logprobs(ROWS[:2], [[5]])
    # The window is 96: 90 tokens, 3 of the prompt and 3 more to read fit, one more does not.
    long = [[Tokens.of([7] * 90)]]
    model.generate(long, max_new_tokens=4, stop=())
    with pytest.raises(ShapeError, match="row 0 is too long"):
        model.generate(long, max_new_tokens=5)
    with pytest.raises(ShapeError, match="row 0 is too long"):
        model.token_logprobs(long, [[5] * 5])
    with pytest.raises(ConfigError, match="temperature"):
        model.generate(ROWS, do_sample=True, temperature=0.0)
