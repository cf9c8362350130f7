"""Words to scores: against plain forward passes; calibration; errors."""

import pytest
import torch

from frozenlm.errors import ConfigError
from frozenlm.prompting.calibration import CONTENT_FREE, ContextualCalibration, DomainPMI, calibrated, class_means
from frozenlm.prompting.classify import Prompt, accuracy, label_loss
from frozenlm.prompting.filled import word_ids
from frozenlm.prompting.scoring import Question, word_scores
from frozenlm.prompting.soft_slots import SoftSlots
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from frozenlm.rows import text_ids
from tests.toys import MASK, toy_lm, toy_masked_lm, toy_sentinel_lm

HOSTS = {
    "gpt2": lambda: toy_lm("gpt2"),
    "opt": lambda: toy_lm("opt", padding_side="left"),
    "llama": lambda: toy_lm("llama"),
    "t5": toy_sentinel_lm,
    "bart": lambda: toy_lm("bart"),
    "bert": toy_masked_lm,
}
LAST = Template.parse("question: {text} answer: {answer}")
INSIDE = Template.parse("it was {answer} of {text}")
SINGLE = {"pos": ["blue", "red"], "neg": "green"}
LONG = {"pos": "the blue river", "neg": ["king", "red cat"]}
RECORDS = [
    {"text": "the cat sat on the mat", "label": "pos"},
    {"text": "", "label": "neg"},
    {"text": "who", "label": "neg"},
]
every_host = pytest.mark.parametrize("name", HOSTS)


@torch.no_grad()
def plain_logprobs(host, filled, word: list[int]) -> torch.Tensor:
    """[len(word), V], from transformers alone: one unpadded row."""
    ids = list(text_ids(filled.row))
    if host.kind == "masked":
        ids = list(text_ids(filled.widened(len(word)).row))
        at = ids.index(MASK)
        logits = host.model(input_ids=torch.tensor([ids])).logits[0, at : at + len(word)]
    elif host.kind == "decoder":
        logits = host.model(input_ids=torch.tensor([ids + word[:-1]])).logits[0, -len(word) :]
    else:
        decoder = torch.tensor([[*host.start_ids, *filled.starts, *word[:-1]]])
        logits = host.model(input_ids=torch.tensor([ids]), decoder_input_ids=decoder).logits[0, -len(word) :]
    return logits.log_softmax(dim=1)


def plain_shares(host, filled, verbalizer: Verbalizer) -> list[float]:
    """Softmax over the words, by hand."""
    totals = []
    for word in (word_ids(host, word, spaced=filled.spaced) for word in verbalizer.words):
        if verbalizer.pieces == "logprob":
            totals.append(plain_logprobs(host, filled, word)[range(len(word)), word].sum())
        else:
            found = plain_logprobs(host, filled, word[:1])[0, word]
            totals.append({"first": found[0], "mean": found.mean(), "max": found.max()}[verbalizer.pieces])
    return torch.stack(totals).softmax(dim=0).tolist()


@every_host
@pytest.mark.parametrize("words", [SINGLE, LONG], ids=["single", "long"])
@pytest.mark.parametrize("pieces", ["logprob", "first", "mean", "max"])
def test_scores_are_those_of_plain_forward_passes(name: str, words: dict, pieces: str) -> None:
    host, verbalizer = HOSTS[name](), Verbalizer(words, pieces=pieces)
    templates = [LAST, INSIDE] if name in ("t5", "bert") else [LAST]
    for template in templates:
        filled = [template.fill(record, host) for record in RECORDS]
        questions = [Question(one, verbalizer) for one in filled]
        for batch_tokens in (8192, 5):
            scores = word_scores(host, questions, batch_tokens=batch_tokens)
            for one, found in zip(filled, scores, strict=True):
                assert found.softmax(dim=0).tolist() == pytest.approx(plain_shares(host, one, verbalizer), abs=1e-4)
    host.assert_unchanged()


@every_host
def test_gradients_reach_soft_slots_through_words_of_any_length(name: str) -> None:
    host = HOSTS[name]()
    template = Template.parse("{soft:lead*2} {text} {soft:tail:it} {answer}")
    slots = SoftSlots.create(host, template)
    for words in (SINGLE, LONG):
        slots.zero_grad()
        prompt = Prompt(template, Verbalizer(words), slots=slots)
        loss, terms = label_loss(host, prompt, RECORDS)
        loss.backward()
        assert terms == 3 and all(bool(p.grad.abs().sum() > 0) for p in slots.parameters())
        found = prompt.classify(host, RECORDS)
        by_hand = -sum(torch.tensor(one.probabilities[r["label"]]).log() for one, r in zip(found, RECORDS, strict=True))
        assert float(loss.detach()) == pytest.approx(float(by_hand), abs=1e-3)


@every_host
def test_the_order_of_classes_does_not_matter(name: str) -> None:
    host = HOSTS[name]()
    for words in (SINGLE, LONG):
        turned = dict(reversed(list(words.items())))
        for calibration in (None, ContextualCalibration(), DomainPMI()):
            one = Prompt(LAST, Verbalizer(words), calibration=calibration).classify(host, RECORDS)
            other = Prompt(LAST, Verbalizer(turned), calibration=calibration).classify(host, RECORDS)
            for mine, theirs in zip(one, other, strict=True):
                assert mine.probabilities == pytest.approx(dict(theirs.probabilities), abs=1e-5)
                assert mine.label == theirs.label


@every_host
def test_a_content_free_input_is_uniform_after_calibration(name: str) -> None:
    host = HOSTS[name]()
    for words in (SINGLE, LONG):
        prompt = Prompt(LAST, Verbalizer(words), calibration=ContextualCalibration(["N/A"]))
        [found] = prompt.classify(host, [{"text": "N/A"}])
        assert found.probabilities == pytest.approx({"pos": 0.5, "neg": 0.5}, abs=1e-5)
        [plain] = Prompt(LAST, Verbalizer(words)).classify(host, [{"text": "N/A"}])
        assert plain.probabilities != pytest.approx({"pos": 0.5, "neg": 0.5}, abs=1e-3)


def test_the_mean_over_several_content_free_inputs_is_uniform() -> None:
    blank = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]])
    quotients = blank / blank.mean(dim=0)
    torch.testing.assert_close(quotients.mean(dim=0), torch.ones(3))
    torch.testing.assert_close(calibrated(blank.mean(dim=0).log(), blank.log()).exp(), torch.full((3,), 1 / 3))
    found = calibrated(torch.tensor([0.2, 0.8]).log(), torch.tensor([[0.1, 0.9]]).log())
    assert found.exp().tolist() == pytest.approx([9 / 13, 4 / 13])
    assert CONTENT_FREE == ("N/A", "", "[MASK]")


def test_pmi_takes_the_words_own_likelihood_off() -> None:
    lm, words = toy_lm(), Verbalizer(LONG)
    prompt = Prompt(LAST, words, calibration=DomainPMI(" answer:"))
    [found] = prompt.classify(lm, RECORDS[:1])
    scores = []
    for word in words.ids(lm):
        asked = LAST.fill(RECORDS[0], lm)
        premise = Template.parse(" answer: {answer}").fill({}, lm)
        both = [plain_logprobs(lm, one, word)[range(len(word)), word].sum() for one in (asked, premise)]
        scores.append(both[0] - both[1])
    by_hand = class_means(torch.stack(scores).log_softmax(dim=0), words.owners, 2).exp()
    assert list(found.probabilities.values()) == pytest.approx(by_hand.tolist(), abs=1e-5)
    default = Prompt(LAST, words, calibration=DomainPMI()).classify(lm, RECORDS[:1])[0]
    assert default.probabilities == pytest.approx(dict(found.probabilities), abs=1e-5)


def test_a_class_is_the_mean_over_its_words() -> None:
    found = class_means(torch.tensor([0.5, 0.1, 0.4]).log(), (0, 0, 1), 2)
    assert found.exp().tolist() == pytest.approx([3 / 7, 4 / 7])


def test_accuracy() -> None:
    found = Prompt(LAST, Verbalizer(SINGLE)).classify(toy_lm(), RECORDS)
    right = sum(one.label == record["label"] for one, record in zip(found, RECORDS, strict=True))
    assert accuracy(found, RECORDS) == pytest.approx(right / 3)
    with pytest.raises(ConfigError, match="record 2 has no field 'label'; it has text"):
        accuracy(found, [*RECORDS[:2], {"text": "a"}])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"a": "x", "b": ["y", " x "]}, "labels 'a' and 'b' share the word ' x '"),
        ({"a": "x", "b": []}, "the label 'b' has no words"),
        ({"a": "x", "b": ["y", ""]}, "the word for 'b' is ''"),
        ({"a": "x"}, "1 labels; expected at least two"),
        ([("a", "x")], "got list; expected a mapping of labels to words"),
    ],
)
def test_refused_verbalizers(words: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"verbalizer: {message}"):
        Verbalizer(words)


def test_words_that_this_lm_cannot_tell_apart_or_does_not_know() -> None:
    lm = toy_lm()
    with pytest.raises(ConfigError, match="the word 'ö' for 'b' has no token"):
        Verbalizer({"a": "blue", "b": "ö"}).ids(lm)
    with pytest.raises(ConfigError, match="'Blue' for 'a' and 'blue' for 'b' are the same tokens"):
        Verbalizer({"a": "Blue", "b": "blue"}).ids(lm)
    same_start = {"a": "the blue", "b": "the red"}
    assert len(Verbalizer(same_start).ids(lm)) == 2
    with pytest.raises(ConfigError, match="are the same tokens"):
        Verbalizer(same_start, pieces="first").ids(lm)
    with pytest.raises(ConfigError, match="pieces is 'sum'"):
        Verbalizer(same_start, pieces="sum")  # type: ignore[arg-type]


def test_unknown_labels() -> None:
    with pytest.raises(ConfigError, match="record 0 has the label 'x'; the verbalizer knows 'pos', 'neg'"):
        label_loss(toy_lm(), Prompt(LAST, Verbalizer(SINGLE)), [{"text": "a", "label": "x"}])
