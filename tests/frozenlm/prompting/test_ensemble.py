"""Ensembles: the mean and the vote of their members, at the price of one batch."""

import pytest
import torch

from frozenlm.errors import ConfigError
from frozenlm.prompting.calibration import ContextualCalibration
from frozenlm.prompting.classify import Prompt
from frozenlm.prompting.ensemble import Ensemble
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from tests.toys import toy_lm, toy_masked_lm, toy_sentinel_lm

RECORDS = [{"text": "the cat sat on the mat"}, {"text": "who was king"}, {"text": "paris"}]
WORDS = {"pos": "blue", "neg": "red"}
MEMBERS = [
    Prompt(Template.parse("question: {text} answer: {answer}"), Verbalizer(WORDS)),
    Prompt(Template.parse("{text} is {answer}"), Verbalizer({"neg": "green", "pos": ["king", "city"]})),
    Prompt(Template.parse("text: {text}\n{answer}"), Verbalizer(WORDS), calibration=ContextualCalibration()),
    Prompt(Template.parse("{text}: {answer}"), Verbalizer({"pos": "the king", "neg": "a cat"})),
]


@pytest.mark.parametrize("make", [toy_lm, toy_masked_lm, toy_sentinel_lm], ids=["gpt2", "bert", "t5"])
def test_mean_and_vote_of_the_members_alone(make) -> None:
    host = make()
    alone = [member.classify(host, RECORDS) for member in MEMBERS]
    mean = Ensemble(MEMBERS).classify(host, RECORDS)
    vote = Ensemble(MEMBERS, how="vote").classify(host, RECORDS)
    for number in range(len(RECORDS)):
        shares = [own[number].probabilities["pos"] for own in alone]
        assert mean[number].probabilities["pos"] == pytest.approx(sum(shares) / 4, abs=1e-5)
        assert vote[number].probabilities["pos"] == pytest.approx(sum(s > 0.5 for s in shares) / 4)
        assert mean[number].label == max(mean[number].probabilities, key=mean[number].probabilities.get)


def test_members_cost_one_batch_of_as_many_rows() -> None:
    lm, seen = toy_lm(), []
    hook = lm.model.transformer.h[0].register_forward_hook(lambda block, args, out: seen.append(args[0].shape[0]))
    Ensemble([MEMBERS[0], MEMBERS[1]] * 3).classify(lm, RECORDS[:1])
    hook.remove()
    assert seen == [6]


def test_a_tie_goes_to_the_larger_mean_and_weights_count() -> None:
    two = Ensemble(MEMBERS[:2], how="vote")
    shares = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    assert two._joined(shares, 0, 0).label == "pos" and two._joined(1 - shares, 0, 0).label == "neg"
    weighted = Ensemble(MEMBERS[:2], weights=[1, 3])._joined(shares, 0, 0)
    assert weighted.probabilities == pytest.approx({"pos": (0.9 + 3 * 0.4) / 4, "neg": (0.1 + 3 * 0.6) / 4})


def test_refused_ensembles() -> None:
    other = Prompt(MEMBERS[0].template, Verbalizer({"pos": "blue", "no": "red"}))
    for members, settings, message in [
        ([], {}, "0 members"),
        (MEMBERS, {"how": "max"}, "how 'max'"),
        ([MEMBERS[0], other], {}, "member 1 knows the labels"),
        (MEMBERS, {"weights": [1]}, "weights are"),
        (MEMBERS, {"weights": [1.0] * (len(MEMBERS) - 1) + [float("inf")]}, "a finite one above 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Ensemble(members, **settings)
