"""Our decoding loops against transformers' generate, and against arithmetic on the LM's own log-probabilities."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from frozenlm import FrozenLM, Soft, Tokens
from frozenlm.decoding import StopRule
from frozenlm.errors import ConfigError, ShapeError
from tests.toys import EOS, NAMES, toy_lm, toy_model, toy_tokenizer

PROMPTS = [[20, 21, 22], [30, 31, 32, 33, 34, 35], [40]]
ROWS = [[Tokens.of(ids)] for ids in PROMPTS]


@pytest.fixture(scope="module", params=NAMES)
def lm(request):
    return toy_lm(request.param)


def theirs(lm, ids, **options):
    """What transformers generates, the new ids only."""
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": lm.pad_id, **options}
    with torch.no_grad():
        made = lm.model.generate(torch.tensor([ids]), **options)
    start = len(ids) if lm.kind == "decoder" else len(lm.start_ids)
    return [one[start:].tolist() for one in made]


def ending_lm(name):
    """A toy LM in which a common token is the eos, so that sequences end at different times."""
    lm = toy_lm(name)
    seen = [i for one in lm.generate(ROWS, max_new_tokens=12, stop=()) for i in one.ids[2:]]
    model = toy_model(name)
    model.generation_config.eos_token_id = max(set(seen), key=seen.count)
    return FrozenLM.from_model(model, toy_tokenizer())


@pytest.mark.parametrize("name", NAMES)
def test_greedy_equals_transformers(name):
    for lm in (toy_lm(name), ending_lm(name)):
        for ids, mine in zip(PROMPTS, lm.generate(ROWS, max_new_tokens=12, stop=()), strict=True):
            assert [mine.ids] == theirs(lm, ids)
            assert mine.stopped == ("eos" if mine.ids[-1] in lm.eos_ids else "length")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 4},
        {"num_beams": 3, "length_penalty": 0.0},
        {"num_beams": 3, "length_penalty": 2.0},
        {"num_beams": 3, "length_penalty": -1.0},
        {"num_beams": 4, "num_return_sequences": 3},
    ],
    ids=str,
)
def test_beam_search_equals_transformers(name, options):
    for lm in (toy_lm(name), ending_lm(name)):
        found = lm.generate(ROWS, max_new_tokens=8, stop=(), **options)
        for ids, mine in zip(PROMPTS, found, strict=True):
            mine = mine if isinstance(mine, list) else [mine]
            wanted = theirs(lm, ids, **{**options, "max_new_tokens": 8})
            for one, other in zip(mine, wanted, strict=True):
                assert one.ids == other[: len(one.ids)]
                assert one.stopped == "eos" or len(one.ids) == 8
                assert set(other[len(one.ids) :]) <= {lm.pad_id, *lm.eos_ids}  # what transformers fills up with


def test_logprobs_are_those_of_the_lm_itself(lm):
    for options in (
        {},
        {"num_beams": 3},
        {"do_sample": True, "temperature": 3.0, "top_k": 20, "seed": 1},
    ):
        found = lm.generate(ROWS, max_new_tokens=6, stop=(), **options)
        scored = lm.token_logprobs(ROWS, [one.ids for one in found])
        for one, wanted in zip(found, scored, strict=True):
            assert one.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
            assert one.logprob == pytest.approx(float(wanted.sum()), abs=1e-4)


def test_cached_decoding_equals_decoding_anew_each_time(lm):
    """Soft tokens in the row, rows of different lengths, KV cache: the same as the whole row again for each token."""
    prompt = Soft(torch.randn(3, lm.hidden_size, generator=torch.Generator().manual_seed(0)))
    rows = [[prompt, *ROWS[0]], [*ROWS[1], prompt], ROWS[2]]
    for row, mine in zip(rows, lm.generate(rows, max_new_tokens=6, stop=()), strict=True):
        ids = []
        for _ in range(len(mine.ids)):
            if lm.kind == "decoder":
                logits = lm._engine.head(lm.forward([[*row, Tokens.of(ids)]]).hidden[:, -1])[0]
            else:
                logits = lm.forward([row], decoder_rows=[[Tokens.of([*lm.start_ids, *ids])]]).logits[0][-1]
            ids.append(int(logits.argmax()))
        assert mine.ids == ids


def test_the_batch_does_not_matter(lm):
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "seed": 7, "num_return_sequences": 2}):
        together = lm.generate(ROWS, max_new_tokens=6, **options)
        apart = lm.generate(ROWS, max_new_tokens=6, batch_tokens=1, **options)
        for one, other in zip(flat(together), flat(apart), strict=True):
            assert one.ids == other.ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    greedy = lm.generate(ROWS, max_new_tokens=6)
    assert [lm.generate([row], max_new_tokens=6)[0].ids for row in ROWS] == [one.ids for one in greedy]


def flat(generations):
    return [one for row in generations for one in (row if isinstance(row, list) else [row])]


# --- sampling ---


def test_the_seed_decides(lm):
    def sample(seed):
        return [one.ids for one in lm.generate(ROWS, do_sample=True, max_new_tokens=8, temperature=2.0, seed=seed)]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(None) != sample(None)


def test_a_numbered_row_keeps_its_samples_wherever_it_stands(lm):
    def sample(order):
        found = lm.generate(
            [ROWS[i] for i in order],
            do_sample=True,
            temperature=2.0,
            max_new_tokens=6,
            num_return_sequences=2,
            seed=3,
            row_numbers=[100 + i for i in order],
        )
        return {i: [one.ids for one in copies] for i, copies in zip(order, found, strict=True)}

    assert sample([0, 1, 2]) == sample([2, 0, 1])
    assert sample([1]) == {1: sample([0, 1])[1]}
    with pytest.raises(ShapeError, match="1 row numbers for 3 rows"):
        lm.generate(ROWS, do_sample=True, row_numbers=[1])


def test_sampling_leaves_the_global_random_state_alone(lm):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    lm.generate(ROWS, do_sample=True, max_new_tokens=4)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.7}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 10, "top_p": 0.8}]
)
def test_samples_follow_transformers_distribution(options):
    lm = toy_lm("llama")
    found = lm.generate(ROWS[:1], do_sample=True, max_new_tokens=1, num_return_sequences=4000, seed=0, **options)
    counts = torch.zeros(lm.vocab_size)
    for one in found[0]:
        counts[one.ids[0]] += 1
    with torch.no_grad():
        logits = lm.model(torch.tensor(PROMPTS[:1])).logits[:, -1]
    if "temperature" in options:
        logits = TemperatureLogitsWarper(options["temperature"])(None, logits)
    if "top_k" in options:
        logits = TopKLogitsWarper(options["top_k"])(None, logits)
    if "top_p" in options:
        logits = TopPLogitsWarper(options["top_p"])(None, logits)
    wanted = logits.softmax(dim=1)[0]
    assert counts[wanted == 0].sum() == 0
    # Each count is binomial: five standard deviations, and one for the rare tokens.
    assert bool(((counts - 4000 * wanted).abs() <= 5 * (4000 * wanted).sqrt() + 1).all())


def test_top_k_of_one_is_greedy(lm):
    sampled = lm.generate(ROWS, do_sample=True, top_k=1, max_new_tokens=6)
    assert [one.ids for one in sampled] == [one.ids for one in lm.generate(ROWS, max_new_tokens=6)]


def test_return_sequences(lm):
    found = lm.generate(ROWS, do_sample=True, num_return_sequences=3, max_new_tokens=5, temperature=2.0, seed=1)
    assert [len(one) for one in found] == [3, 3, 3]
    assert len({tuple(one.ids) for one in found[0]}) > 1


# --- stopping ---


class Spelled:
    """Ids are letters: 1 is "a"; 26 is "z"; 27 is a newline; 28 is eos."""

    def __call__(self, ids):
        text = {**{i: chr(96 + i) for i in range(1, 27)}, 27: "\n", 28: ""}
        return "".join(text[i] for i in ids)


def test_a_stop_string_ends_and_is_cut():
    rule = StopRule([28], ("\n",), Spelled())
    assert rule.ended([1, 2]) is None
    assert rule.ended([1, 2, 27]) == "stop"
    assert rule.ended([1, 28]) == "eos"
    assert rule.text([1, 2, 27]) == "ab"
    assert rule.text([1, 2, 28]) == "ab"


def test_a_stop_string_over_several_tokens():
    rule = StopRule([28], ("cd", "xyz"), Spelled())
    assert rule.ended([1, 3]) is None
    assert rule.ended([1, 3, 4]) == "stop"
    assert rule.text([1, 3, 4]) == "a"
    assert rule.text([24, 25, 26, 3, 4]) == ""


def test_generation_stops_at_a_string():
    lm = toy_lm("llama")
    free = lm.generate(ROWS, max_new_tokens=8, stop=())[0]
    word = lm.decode([free.ids[2]])
    ended = lm.generate(ROWS, max_new_tokens=8, stop=(word,))[0]
    assert ended.stopped == "stop"
    assert word not in ended.text
    assert ended.ids == free.ids[: len(ended.ids)] and word in lm.decode(ended.ids)
    assert lm.generate(ROWS, max_new_tokens=8, stop=word)[0] == ended
    beams = lm.generate(ROWS, max_new_tokens=8, stop=(word,), num_beams=2, num_return_sequences=2)
    assert all(word not in one.text for row in beams for one in row)


def test_only_new_ids_are_in_the_text():
    lm = toy_lm("llama")
    (one,) = lm.generate([[Tokens.of(lm.encode("the cat"))]], max_new_tokens=3, stop=())
    assert one.text == lm.decode(one.ids) and len(one.ids) == len(one.logprobs) == 3


def test_eos_is_counted_but_not_seen():
    lm = ending_lm("llama")
    ended = [one for one in lm.generate(ROWS, max_new_tokens=12, stop=()) if one.stopped == "eos"]
    assert ended
    for one in ended:
        assert one.ids[-1] in lm.eos_ids and len(one.ids) == len(one.logprobs)
        assert one.text == lm.decode(one.ids[:-1])


def test_several_eos_ids():
    model = toy_model("llama")
    model.generation_config.eos_token_id = [EOS, 77]
    assert FrozenLM.from_model(model, toy_tokenizer()).eos_ids == (EOS, 77)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"num_beams": 0}, "num_beams"),
        ({"temperature": 0.0, "do_sample": True}, "temperature must be above 0"),
        ({"temperature": float("nan"), "do_sample": True}, "temperature must be above 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"do_sample": True, "num_beams": 2}, "exclude each other"),
        ({"num_return_sequences": 2}, "needs do_sample=True"),
        ({"num_return_sequences": 3, "num_beams": 2}, "needs do_sample=True"),
        ({"stop": ("",)}, "stop must be"),
        ({"stop": (3,)}, "stop must be"),
    ],
)
def test_bad_settings_get_one_clear_error(options, message):
    with pytest.raises(ConfigError, match=message):
        toy_lm().generate(ROWS, **options)
