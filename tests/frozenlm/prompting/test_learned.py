"""What is learned about a prompt: trained together, counted, kept and read again, and refused elsewhere."""

from pathlib import Path

import pytest
import torch

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompting import LearnedPrompt, Template, Verbalizer
from frozenlm.prompting.classify import label_loss
from frozenlm.prompting.learned_verbalizers import PROTOTYPE_WIDTH, SoftVerbalizer, state_width
from frozenlm.prompting.scoring import answer_states
from frozenlm.prompting.soft_slots import SoftSlots
from tests.toys import toy_lm, toy_masked_lm, toy_sentinel_lm

HOSTS = {"gpt2": toy_lm, "t5": toy_sentinel_lm, "bert": toy_masked_lm}
SOFT = Template.parse("{soft:lead*2} {text} is {answer}")
PLAIN = Template.parse("{text} is {answer}")
WORDS = Verbalizer({"pos": "blue", "neg": "red"})
RECORDS = [
    {"text": text, "label": label}
    for text, label in [("the cat", "pos"), ("a cat", "pos"), ("who was king", "neg"), ("who is king", "neg")]
]
PLACES = [0, 0, 1, 1]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("template", "verbalizer"), [(SOFT, "words"), (SOFT, "soft"), (PLAIN, "soft")])
def test_a_label_is_learned(host: str, template: Template, verbalizer, tmp_path: Path) -> None:
    lm = HOSTS[host]()
    learned = LearnedPrompt.create(lm, template, WORDS, verbalizer=verbalizer)
    slots = 2 * lm.hidden_size if template is SOFT else 0
    assert sum(p.numel() for p in learned.parameters()) == slots + (2 * state_width(lm) if verbalizer == "soft" else 0)
    prompt = learned.prompt(template, WORDS)
    filled = prompt.fill(lm, RECORDS)
    start = {name: one.detach().clone() for name, one in learned.named_parameters()}
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss, terms = learned.loss(lm, prompt, filled, PLACES)
        torch.testing.assert_close(loss, label_loss(lm, prompt, RECORDS)[0])  # filled once, it follows the parameters
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / terms)
    assert losses[-1] < losses[0] and not any(torch.equal(one, start[n]) for n, one in learned.named_parameters())
    lm.assert_unchanged()
    learned.save(tmp_path, lm)
    again = LearnedPrompt.load(tmp_path, lm, template, WORDS, verbalizer=verbalizer)
    mine, theirs = prompt.classify(lm, RECORDS), again.prompt(template, WORDS).classify(lm, RECORDS)
    assert [one.probabilities for one in mine] == [one.probabilities for one in theirs]


@pytest.mark.parametrize("template", [PLAIN, SOFT])
def test_prototypes_learn_by_their_own_contrast(template: Template) -> None:
    lm = toy_lm()
    learned = LearnedPrompt.create(lm, template, WORDS, verbalizer="prototypical", seed=1)
    prompt = learned.prompt(template, WORDS)
    filled = prompt.fill(lm, RECORDS)
    loss, terms = learned.loss(lm, prompt, filled, PLACES)
    with torch.no_grad():
        wanted, _ = learned.verbalizer.loss(answer_states(lm, filled), PLACES)  # type: ignore[union-attr]
    assert terms == 4 and loss.item() == pytest.approx(wanted.item())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in learned.parameters())
    numbers = state_width(lm) * PROTOTYPE_WIDTH + 2 * PROTOTYPE_WIDTH + (2 * lm.hidden_size if template is SOFT else 0)
    assert sum(p.numel() for p in learned.parameters()) == numbers


def test_what_does_not_fit(tmp_path: Path) -> None:
    lm = toy_lm()
    with pytest.raises(ConfigError, match="nothing is learned"):
        LearnedPrompt.create(lm, PLAIN, WORDS)
    with pytest.raises(ConfigError, match="verbalizer is 'hard'; expected words, soft, prototypical"):
        LearnedPrompt.create(lm, PLAIN, WORDS, verbalizer="hard")  # type: ignore[arg-type]
    LearnedPrompt.create(lm, SOFT, WORDS, verbalizer="soft").save(tmp_path, lm)
    for template, words, verbalizer, message in (
        (PLAIN, WORDS, "soft", "holds slots and verbalizer, and verbalizer was asked for"),
        (SOFT, WORDS, "words", "and slots was asked for"),
        (SOFT, WORDS, "prototypical", "of kind 'soft_verbalizer', expected 'prototypical_verbalizer'"),
        (Template.parse("{soft:tail*2} {text} {answer}"), WORDS, "soft", "trained for the soft slots lead"),
        (
            Template.parse("{soft:lead*3} {text} is {answer}"),
            WORDS,
            "soft",
            "2 vectors in the soft slot 'lead'; .* has 3",
        ),
        (Template.parse("{soft:lead} {text} is {answer}"), WORDS, "soft", "the template has 1"),
        (Template.parse("{soft:lead:it was red} {text} is {answer}"), WORDS, "soft", "the template has 3"),
        (Template.parse("{soft:lead*2} {text} was {answer}"), WORDS, "soft", "this one is '{soft:lead.*} {text} was"),
        (SOFT, Verbalizer({"yes": "blue", "no": "red"}), "soft", "tells pos, neg apart, the words are for yes, no"),
    ):
        with pytest.raises(CheckpointError, match=message):
            LearnedPrompt.load(tmp_path, lm, template, words, verbalizer=verbalizer)
    with pytest.raises(CheckpointError, match="another LM"):
        LearnedPrompt.load(tmp_path, toy_lm(seed=1), SOFT, WORDS, verbalizer="soft")


def test_a_verbalizer_alone_belongs_to_its_template(tmp_path: Path) -> None:
    lm = toy_lm()
    LearnedPrompt.create(lm, PLAIN, WORDS, verbalizer="prototypical").save(tmp_path, lm)
    again = LearnedPrompt.load(tmp_path, lm, PLAIN, WORDS, verbalizer="prototypical")
    again.save(tmp_path, lm)  # and it still says so
    with pytest.raises(CheckpointError, match=r"trained in the template '{text} is {answer}', this one is '{text} was"):
        LearnedPrompt.load(tmp_path, lm, Template.parse("{text} was {answer}"), WORDS, verbalizer="prototypical")


def test_files_that_do_not_say_their_template_are_read(tmp_path: Path) -> None:
    lm = toy_lm()
    LearnedPrompt(SoftSlots.create(lm, SOFT), SoftVerbalizer.create(lm, WORDS)).save(tmp_path, lm)
    assert "template" not in (tmp_path / "slots" / "module.json").read_text()
    LearnedPrompt.load(tmp_path, lm, Template.parse("{soft:lead*2} {text} was {answer}"), WORDS, verbalizer="soft")
    with pytest.raises(CheckpointError, match="2 vectors in the soft slot 'lead'"):
        LearnedPrompt.load(tmp_path, lm, Template.parse("{soft:lead*4} {text} {answer}"), WORDS, verbalizer="soft")
