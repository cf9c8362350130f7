"""In-context learning: which demonstrations, never the query, a budget of whole ones, and one reading of a prefix."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from frozenlm.errors import ConfigError
from frozenlm.memory import Memory
from frozenlm.prompting.calibration import Calibration, ContextualCalibration, DomainPMI
from frozenlm.prompting.classify import Prompt, probabilities
from frozenlm.prompting.demonstrations import Demonstrations
from frozenlm.prompting.ensemble import Ensemble
from frozenlm.prompting.scoring import Question, word_scores
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from frozenlm.rows import row_length, text_ids
from tests.toys import WINDOW, toy_encoder, toy_lm, toy_masked_lm, toy_sentinel_lm

TEMPLATE = Template.parse("text: {text} answer: {answer}")
WORDS = Verbalizer({"pos": "blue", "neg": "red"})
LONG = Verbalizer({"pos": "the blue river", "neg": "red"})
POOL = [
    {"id": f"d{n}", "text": text, "label": ("pos", "neg")[n % 2]}
    for n, text in enumerate(
        ["king paris", "king london", "cat dog", "cat mat", "nile river", "amazon river", "who was"]
    )
]
QUERIES = [{"text": "king berlin"}, {"text": "cat sat"}, {"text": "green"}]


def bag(texts) -> torch.Tensor:
    """Each text's words, counted, in a vocabulary made as it goes."""
    return torch.stack([torch.tensor([float(word in text.split()) for word in VOCABULARY]) for text in texts])


VOCABULARY = sorted({word for record in [*POOL, *QUERIES] for word in record["text"].split()})


def demos(**settings) -> Demonstrations:
    return Demonstrations(POOL, **{"k": 2, "embed": bag, **settings})


def test_nearest_are_those_that_share_words() -> None:
    chosen = demos(choose="nearest").chosen(QUERIES, TEMPLATE)
    assert chosen[:2] == [[0, 1], [2, 3]]


def test_diverse_are_far_from_each_other_and_random_is_seeded() -> None:
    [[first, second, third]] = demos(choose="diverse", k=3).chosen(QUERIES[:1], TEMPLATE)
    vectors = torch.nn.functional.normalize(bag([record["text"] for record in POOL]), dim=1)
    assert (
        float(vectors[first] @ vectors[second]) == float(vectors[[first, second]] @ vectors[third] @ torch.ones(2)) == 0
    )
    draws = [demos(seed=seed).chosen(QUERIES, TEMPLATE) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and draws[0][0] == draws[0][1] and len({str(draw) for draw in draws}) > 1


@pytest.mark.parametrize("choose", ["random", "nearest", "diverse"])
def test_a_demonstration_is_never_the_query(choose: str) -> None:
    pool = demos(choose=choose, k=len(POOL))
    for place, record in enumerate(POOL):
        same_text, same_id = {"text": f" {record['text'].upper()}\n"}, {"id": record["id"], "text": "another"}
        for query in (record, same_text, same_id):
            [chosen] = pool.chosen([query], TEMPLATE)
            assert sorted([*chosen, place]) == list(range(len(POOL)))


def test_what_the_lm_reads() -> None:
    lm = toy_lm()
    for order, texts in (("best_last", ["king london", "king paris"]), ("best_first", ["king paris", "king london"])):
        prompt = Prompt(TEMPLATE, WORDS, demonstrations=demos(choose="nearest", order=order))
        [filled] = prompt.fill(lm, QUERIES[:1])
        words = [WORDS.word(next(r["label"] for r in POOL if r["text"] == text), where="") for text in texts]
        shown = "".join(f"text: {text} answer: {word}\n\n" for text, word in zip(texts, words, strict=True))
        assert text_ids(filled.row) == (*lm.bos_ids, *lm.encode(shown + "text: king berlin answer:"))


def test_a_budget_drops_whole_demonstrations_the_worst_first() -> None:
    lm = toy_lm()
    one = len(lm.encode("text: king paris answer: blue\n\n"))
    for budget, kept in ((2 * one, 2), (2 * one - 1, 1), (one, 1), (one - 1, 0), (0, 0)):
        prompt = Prompt(TEMPLATE, WORDS, demonstrations=demos(choose="nearest", budget=budget))
        [filled] = prompt.fill(lm, QUERIES[:1])
        assert (row_length(filled.prefix), filled.dropped, filled.cut) == (kept * one, 2 - kept, 0)
        if kept == 1:
            assert "paris" in lm.decode(text_ids(filled.prefix))


def test_over_a_budget_may_be_an_error_that_names_the_question() -> None:
    lm = toy_lm()
    one = len(lm.encode("text: king paris answer: blue\n\n"))

    def filled(budget: int | None, **settings: Any) -> list:
        pool = demos(choose="nearest", budget=budget, over_budget="error")
        return Prompt(TEMPLATE, WORDS, demonstrations=pool, **settings).fill(lm, [QUERIES[0] | {"id": "q7"}])

    assert row_length(filled(2 * one)[0].prefix) == 2 * one
    with pytest.raises(ConfigError, match=f"record q7: its 2 demonstrations take {2 * one} tokens, the budget leaves"):
        filled(2 * one - 1)
    question = filled(None)[0].length - 2 * one
    with pytest.raises(ConfigError, match=f"set: no limit, left by the question: {2 * one - 1}"):
        filled(None, max_tokens=question + 2 * one - 1)
    with pytest.raises(ConfigError, match="over_budget 'ignore'"):
        demos(over_budget="ignore")


def test_no_question_is_asked_without_any_demonstration_unsaid() -> None:
    lm = toy_lm()
    one = len(lm.encode("text: king paris answer: blue\n\n"))
    too_small = Prompt(TEMPLATE, WORDS, demonstrations=demos(budget=one - 1))
    for asked in (too_small, Ensemble([too_small, Prompt(TEMPLATE, WORDS)])):
        with pytest.raises(ConfigError, match="not one of the 6 demonstrations chosen for 3 questions fits"):
            asked.classify(lm, QUERIES)
    long, room = {"text": " ".join(["green"] * 30)}, len(lm.encode("text: answer:")) + 30 + one - 1
    prompt = Prompt(TEMPLATE, WORDS, demonstrations=demos(), max_tokens=room)  # beside the long one nothing fits
    assert next(p.dropped for p in prompt.classify(lm, [long, *QUERIES])) == 2
    with pytest.raises(ConfigError, match="not one of the 2"):
        prompt.classify(lm, [long])


def test_a_question_may_have_a_limit_of_its_own() -> None:
    lm, long = toy_lm(), {"text": " ".join(["green"] * 60)}
    prompt = Prompt(TEMPLATE, WORDS, demonstrations=demos(), question_tokens=20)
    [filled] = prompt.fill(lm, [long])
    assert row_length(filled.body) + len(filled.opens) == 20 and filled.cut > 0 and filled.dropped == 0


@pytest.mark.parametrize("make", [toy_lm, toy_masked_lm, toy_sentinel_lm], ids=["gpt2", "bert", "t5"])
def test_the_window_drops_demonstrations_and_never_cuts_the_query(make) -> None:
    host = make()
    query = {"text": " ".join(["green"] * 60)}
    prompt = Prompt(TEMPLATE, LONG, demonstrations=demos(k=7), max_tokens=WINDOW)
    [filled] = prompt.fill(host, [query])
    [alone] = Prompt(TEMPLATE, LONG, max_tokens=WINDOW).fill(host, [query])
    assert filled.cut == alone.cut == 0 and filled.body[0].ids == alone.body[0].ids
    assert 0 < filled.dropped < 7 and len(filled.prefix) == 7 - filled.dropped
    assert filled.length <= WINDOW - 2 * (host.kind != "encoder-decoder")  # two more pieces of the longest word
    found = prompt.classify(host, [query])[0]
    assert found.dropped == filled.dropped and sum(found.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("make", [toy_lm, lambda: toy_lm("llama", padding_side="left"), toy_masked_lm, toy_sentinel_lm])
@pytest.mark.parametrize("verbalizer", [WORDS, LONG], ids=["single", "long"])
def test_batched_equals_one_by_one_and_shared_equals_unshared(make, verbalizer: Verbalizer) -> None:
    host = make()
    for choose in ("random", "nearest"):
        prompt = Prompt(
            TEMPLATE,
            verbalizer,
            demonstrations=demos(choose=choose),
            calibration=ContextualCalibration(),
            max_tokens=90,
        )
        together = prompt.classify(host, QUERIES)
        for batch_tokens in (60, 200):
            for mine, again in zip(together, prompt.classify(host, QUERIES, batch_tokens=batch_tokens), strict=True):
                assert again.probabilities == pytest.approx(dict(mine.probabilities), abs=1e-5)
        for mine, query in zip(together, QUERIES, strict=True):
            assert prompt.classify(host, [query])[0].probabilities == pytest.approx(dict(mine.probabilities), abs=1e-5)
        with torch.no_grad():
            questions = [Question(one, verbalizer) for one in prompt.fill(host, QUERIES)]
            shared, apart = word_scores(host, questions), word_scores(host, questions, share=False)
        for one, other in zip(shared, apart, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def batches(lm, prompt: Prompt, queries: list) -> list[tuple[int, int]]:
    """[rows, columns] of each batch that goes through the LM."""
    seen: list[tuple[int, int]] = []
    hook = lm.model.transformer.h[0].register_forward_hook(
        lambda block, args, out: seen.append(tuple(args[0].shape[:2]))
    )
    with torch.no_grad():
        probabilities(lm, [(prompt, one) for one in prompt.fill(lm, queries)])
    hook.remove()
    return seen


def test_a_shared_prefix_is_read_once() -> None:
    lm = toy_lm()
    one = len(lm.encode("text: king paris answer: blue\n\n"))
    prompt = Prompt(TEMPLATE, WORDS, demonstrations=demos(seed=1))
    assert batches(lm, prompt, [{"text": "green"}] * 5) == [(1, 2 * one), (5, len(lm.encode("text: green answer:")))]
    calibrated = Prompt(TEMPLATE, WORDS, demonstrations=demos(seed=1), calibration=ContextualCalibration(["a", "the"]))
    assert [rows for rows, _ in batches(lm, calibrated, [{"text": "green"}] * 5)] == [1, 5 + 2]


@pytest.mark.parametrize("verbalizer", [WORDS, LONG], ids=["single", "long"])
@pytest.mark.parametrize("choose", ["random", "nearest"])
def test_a_shared_prefix_is_copied_for_a_batch_at_a_time(
    verbalizer: Verbalizer, choose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, sizes, room = toy_lm(), [], 120
    select = Memory.select

    def noted(self: Memory, indices: Any) -> Memory:
        found = select(self, indices)
        sizes.append(found.mask.numel())
        return found

    monkeypatch.setattr(Memory, "select", noted)
    prompt = Prompt(TEMPLATE, verbalizer, demonstrations=demos(choose=choose))
    questions = [Question(one, verbalizer) for one in prompt.fill(lm, QUERIES * 10)]
    with torch.no_grad():
        found = word_scores(lm, questions, batch_tokens=room)
        assert len(sizes) > 5 and max(sizes) <= room
        apart = word_scores(lm, questions, batch_tokens=room, share=False)
    torch.testing.assert_close(torch.stack(found), torch.stack(apart), atol=1e-4, rtol=0)


def test_calibration_may_leave_the_demonstrations_out() -> None:
    lm, calibration = toy_lm(), ContextualCalibration(["N/A"], demonstrations=False)
    words = {"pos": "blue", "neg": "red"}  # one word a label, so shares of words are shares of labels
    prompt = Prompt(TEMPLATE, Verbalizer(words), demonstrations=demos(choose="nearest"), calibration=calibration)
    [raw] = Prompt(TEMPLATE, Verbalizer(words), demonstrations=demos(choose="nearest")).classify(lm, QUERIES[:1])
    [blank] = Prompt(TEMPLATE, Verbalizer(words)).classify(lm, [{"text": "N/A"}])
    quotient = {label: raw.probabilities[label] / blank.probabilities[label] for label in words}
    expected = {label: value / sum(quotient.values()) for label, value in quotient.items()}
    assert prompt.classify(lm, QUERIES[:1])[0].probabilities == pytest.approx(expected, abs=1e-5)


PREMISE = "the cat sat on the mat of the river " * 3
BLANKS = {"pmi": DomainPMI(PREMISE), "texts": ContextualCalibration(["a", PREMISE])}


@pytest.mark.parametrize("make", [toy_lm, toy_masked_lm, toy_sentinel_lm], ids=["gpt2", "bert", "t5"])
@pytest.mark.parametrize("verbalizer", [WORDS, LONG], ids=["single", "long"])
@pytest.mark.parametrize("calibration", BLANKS.values(), ids=BLANKS)
def test_demonstrations_leave_room_for_what_calibration_asks(
    make, verbalizer: Verbalizer, calibration: Calibration
) -> None:
    host = make()
    prompt = Prompt(TEMPLATE, verbalizer, demonstrations=demos(k=7), calibration=calibration, max_tokens=60)
    [filled] = prompt.fill(host, QUERIES[:1])
    [plain] = replace(prompt, calibration=None).fill(host, QUERIES[:1])
    assert 0 < len(filled.prefix) < len(plain.prefix)
    blanks, spare = prompt.blanks(host, filled), 2 * (verbalizer is LONG and host.kind != "encoder-decoder")
    assert all(one.cut == 0 and one.length + spare <= 60 and one.prefix == filled.prefix for one in blanks)
    longest = max(row_length([one]) for one in plain.prefix)
    assert max(one.length for one in blanks) + spare + longest > 60  # no more was dropped than had to be
    assert prompt.classify(host, QUERIES[:1])[0].dropped == filled.dropped
    apart = replace(prompt, calibration=replace(calibration, demonstrations=False))
    assert apart.fill(host, QUERIES[:1])[0].prefix == plain.prefix


@pytest.mark.parametrize("calibration", BLANKS.values(), ids=BLANKS)
def test_a_content_free_text_that_does_not_fit_is_said_before_anything_is_scored(calibration: Calibration) -> None:
    lm = toy_lm()
    for shown in (None, demos()):
        prompt = Prompt(TEMPLATE, WORDS, demonstrations=shown, calibration=calibration, max_tokens=12)
        with pytest.raises(
            ConfigError, match=r"calibration: .* tokens, 0 of them .* the room is 12; take a shorter pr"
        ):
            prompt.fill(lm, QUERIES)
    fits = Prompt(TEMPLATE, WORDS, demonstrations=demos(), calibration=calibration, max_tokens=60)
    [filled] = fits.fill(lm, QUERIES[:1])
    with pytest.raises(ConfigError, match="fewer demonstrations"):
        fits.blanks(lm, replace(filled, prefix=filled.prefix * 4))
    strict = replace(fits, demonstrations=demos(k=7, over_budget="error"))
    with pytest.raises(ConfigError, match="record 0, asked about nothing: its 7 demonstrations"):
        strict.fill(lm, QUERIES[:1])


def test_an_encoders_vectors_will_do() -> None:
    pool = Demonstrations(POOL, k=3, choose="nearest", embed=toy_encoder("bert").vectors)
    assert [len(own) for own in pool.chosen(QUERIES, TEMPLATE)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k 0"),
        ({"choose": "best"}, "choose 'best'"),
        ({"order": "up"}, "order 'up'"),
        ({"choose": "nearest", "embed": None}, "needs embed"),
    ],
)
def test_refused_settings(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        demos(**settings)


@pytest.mark.parametrize("vectors", [None, torch.ones(1, 3), torch.ones(3), torch.full((len(POOL), 3), torch.nan)])
def test_vectors_that_are_none(vectors: Any) -> None:
    with pytest.raises(ConfigError, match="a row of finite numbers for each"):
        demos(choose="nearest", embed=lambda texts: vectors).chosen(QUERIES, TEMPLATE)


def test_a_demonstration_without_an_answer() -> None:
    pool = Demonstrations([{"text": "a"}], k=1)
    with pytest.raises(ConfigError, match="demonstration 0 has no field 'label'"):
        Prompt(TEMPLATE, WORDS, demonstrations=pool).fill(toy_lm(), QUERIES)
