"""Soft and prototypical verbalizers."""

import pytest
import torch

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompting.classify import Prompt, label_loss
from frozenlm.prompting.learned_verbalizers import (
    PrototypicalVerbalizer,
    SoftVerbalizer,
    state_width,
    vocabulary_rows,
)
from frozenlm.prompting.scoring import answer_states, head
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from tests.toys import toy_lm, toy_masked_lm, toy_sentinel_lm

HOSTS = {name: (lambda name=name: toy_lm(name)) for name in ("gpt2", "opt", "llama", "bart")}
HOSTS |= {"t5": toy_sentinel_lm, "bert": toy_masked_lm}
TEMPLATE = Template.parse("{text} is {answer}")
WORDS = Verbalizer({"pos": "blue", "neg": "red"})
RECORDS = [
    {"text": text, "label": label}
    for text, label in [("the cat", "pos"), ("a cat", "pos"), ("who was king", "neg"), ("who is king", "neg")]
]
every_host = pytest.mark.parametrize("name", HOSTS)


@every_host
def test_rows_of_the_vocabulary_layer(name: str) -> None:
    host = HOSTS[name]()
    rows = vocabulary_rows(host, [40, 41])
    states = torch.randn(3, state_width(host), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bias = head(host, torch.zeros(1, state_width(host)))
        torch.testing.assert_close(states @ rows.T + bias[:, [40, 41]], head(host, states)[:, [40, 41]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "opt"])
def test_a_soft_verbalizer_begins_as_the_manual_one(name: str) -> None:
    host = HOSTS[name]()
    soft = SoftVerbalizer.create(host, WORDS)
    manual = Prompt(TEMPLATE, WORDS).classify(host, RECORDS)
    for mine, one in zip(Prompt(TEMPLATE, soft).classify(host, RECORDS), manual, strict=True):
        assert mine.probabilities == pytest.approx(dict(one.probabilities), abs=1e-5)


@every_host
@pytest.mark.parametrize("kind", [SoftVerbalizer, PrototypicalVerbalizer])
def test_learning_counting_keeping(name: str, kind, tmp_path) -> None:
    host = HOSTS[name]()
    learned = kind.create(host, WORDS)
    sizes = (2, state_width(host), 64) if kind is PrototypicalVerbalizer else (2, state_width(host))
    assert sum(p.numel() for p in learned.parameters()) == kind.parameter_count(*sizes)
    prompt = Prompt(TEMPLATE, learned)
    start = label_loss(host, prompt, RECORDS)[0].item()
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(15):
        optimizer.zero_grad()
        label_loss(host, prompt, RECORDS)[0].backward()
        optimizer.step()
    assert label_loss(host, prompt, RECORDS)[0].item() < start
    learned.save(tmp_path, host)
    again = kind.load(tmp_path, host)
    found = Prompt(TEMPLATE, again).classify(host, RECORDS)
    assert [one.probabilities for one in found] == [one.probabilities for one in prompt.classify(host, RECORDS)]
    with pytest.raises(CheckpointError, match="trained for another LM"):
        kind.load(tmp_path, toy_lm("gpt2", seed=5))
    host.assert_unchanged()


def test_the_nearest_prototype_wins() -> None:
    host = toy_lm()
    learned = PrototypicalVerbalizer.create(host, WORDS, width=16)
    states = torch.eye(32)[:4]
    learned.fit_to(states, [0, 0, 1, 1])
    with torch.no_grad():
        scores = learned.from_states(host, states, spaced=True)
        vectors = learned.projected(states)
        means = torch.stack([vectors[:2].mean(dim=0), vectors[2:].mean(dim=0)])
        cosines = torch.nn.functional.cosine_similarity(vectors[:, None], means[None], dim=2)
    torch.testing.assert_close(scores * learned.temperature, cosines)
    with pytest.raises(ConfigError, match="no example of"):
        learned.fit_to(states, [0, 0, 0, 0])


def test_the_prototypical_loss_by_hand() -> None:
    learned = PrototypicalVerbalizer(WORDS, size=2, width=2, temperature=1.0)
    with torch.no_grad():
        learned.projection.copy_(torch.eye(2))
        learned.prototypes.copy_(torch.eye(2))
    loss, count = learned.loss(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), [0, 0, 1])
    # Each state is its prototype: log(e + 1) - 1 three times. Of the pairs, states 0 and 1 have one like them (cosine
    # 1) and one unlike (cosine 0); state 2 has none like it.
    one = torch.tensor(1.0)
    assert count == 3
    assert loss.item() == pytest.approx(float(5 * ((one.exp() + 1).log() - 1)), abs=1e-5)


def test_prototypes_without_training() -> None:
    host = toy_masked_lm()
    learned = PrototypicalVerbalizer.create(host, WORDS)
    with torch.no_grad():
        states = answer_states(host, [TEMPLATE.fill(record, host) for record in RECORDS])
    learned.fit_to(states, [0, 0, 1, 1])
    found = Prompt(TEMPLATE, learned).classify(host, RECORDS)
    assert [one.label for one in found] == [record["label"] for record in RECORDS]
