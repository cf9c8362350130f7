"""Calibration and the mean over words with numbers of any size, on logarithms."""

import math

import pytest
import torch

from frozenlm.errors import ConfigError
from frozenlm.prompting.calibration import ContextualCalibration, DomainPMI, calibrated, class_means
from frozenlm.prompting.classify import Prompt, label_loss
from frozenlm.prompting.demonstrations import Demonstrations
from frozenlm.prompting.scoring import Question, word_scores
from frozenlm.prompting.soft_slots import SoftSlots
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from tests.toys import toy_lm, toy_masked_lm, toy_sentinel_lm

HOSTS = {"gpt2": toy_lm, "t5": toy_sentinel_lm, "bert": toy_masked_lm}
every_host = pytest.mark.parametrize("name", HOSTS)
TEMPLATE = Template.parse("{text} answer: {answer}")
LONG = {"pos": "blue", "neg": "the cat sat on the mat of the river " * 4}
RECORD = {"text": "who was king", "label": "neg"}


def test_what_float32_cannot_hold_is_calibrated() -> None:
    blank = torch.tensor([[0.0, -200.0], [0.0, -300.0]])  # means e^0 and e^-200 / 2
    found = calibrated(torch.tensor([0.0, -199.0]), blank)
    assert found.exp().tolist() == pytest.approx([1 / (1 + 2 * math.e), 2 * math.e / (1 + 2 * math.e)], rel=1e-5)


def test_the_mean_of_what_float32_cannot_hold() -> None:
    found = class_means(torch.tensor([0.0, -math.inf, -200.0, -200.0]), (0, 0, 1, 1), 2)
    assert found.tolist() == pytest.approx([0, -200 + math.log(2)])  # e^0 / 2 beside e^-200


@pytest.mark.parametrize("broken", [-math.inf, math.nan])
def test_a_word_without_any_probability(broken: float) -> None:
    with pytest.raises(ConfigError, match="a word has probability 0 for content-free input"):
        calibrated(torch.tensor([0.0, -1.0]), torch.tensor([[0.0, broken]]))


@every_host
def test_a_long_word_is_learned(name: str) -> None:
    host, template = HOSTS[name](), Template.parse("{soft:lead*2} {text} answer: {answer}")
    prompt = Prompt(template, Verbalizer(LONG), slots=SoftSlots.create(host, template))
    with torch.no_grad():
        [scores] = word_scores(host, [Question(one, prompt.verbalizer) for one in prompt.fill(host, [RECORD])])
    assert float(scores[0] - scores[1]) > 90
    loss, _ = label_loss(host, prompt, [RECORD])
    assert float(loss.detach()) == pytest.approx(float(scores[0] - scores[1]), abs=1e-3)
    loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in prompt.slots.parameters())


@every_host
def test_long_words_are_calibrated(name: str) -> None:
    host, words = HOSTS[name](), Verbalizer(LONG)
    prompt = Prompt(TEMPLATE, words, calibration=ContextualCalibration(["a"]))
    [nothing] = prompt.classify(host, [{"text": "a"}])
    assert nothing.probabilities == pytest.approx({"pos": 0.5, "neg": 0.5}, abs=1e-4)
    for calibration, blank in (
        (prompt.calibration, TEMPLATE.fill({"text": "a"}, host)),
        (DomainPMI(" answer:"), Template.parse(" answer: {answer}").fill({}, host)),
    ):
        [found] = Prompt(TEMPLATE, words, calibration=calibration).classify(host, [RECORD])
        with torch.no_grad():
            asked, prior = word_scores(host, [Question(TEMPLATE.fill(RECORD, host), words), Question(blank, words)])
        by_hand = (asked.double() - prior.double()).softmax(dim=0)
        assert list(found.probabilities.values()) == pytest.approx(by_hand.tolist(), abs=1e-4)


def test_nothing_is_asked_where_demonstrations_alone_are_read() -> None:
    lm, bare = toy_lm(), Template.parse("{text} {answer}")
    train = [
        {"text": f"the {word}", "label": label} for word, label in (("cat", "pos"), ("dog", "neg"), ("king", "pos"))
    ]
    words = Verbalizer({"pos": "blue", "neg": "red"})
    shown = Demonstrations(train, k=2, separator="\n")
    prompt = Prompt(bare, words, demonstrations=shown, calibration=ContextualCalibration())
    records = [{"text": "the cat sat"}, {"text": "a river"}]
    together = [one.probabilities for one in prompt.classify(lm, records)]
    alone = [prompt.classify(lm, [record])[0].probabilities for record in records]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    "source", ["{text}{answer}", "{text} {answer}", "so: {text} it is {answer}", "{text}\n{answer}"]
)
def test_the_premise_scores_the_pieces_that_the_question_does(source: str) -> None:
    template = Template.parse(source)
    ((premise, record),) = DomainPMI().blanks(template)
    assert premise.spaced is template.spaced and not premise.fields and record == {}
