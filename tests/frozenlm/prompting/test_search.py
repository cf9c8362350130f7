"""Automatic templates, words and discrete search."""

import json

import pytest
import torch

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.lm import FrozenLM
from frozenlm.prompting.parts import Field
from frozenlm.prompting.search import Candidate, propose_templates, propose_words, search
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from tests.toys import VOCAB_SIZE, toy_lm, toy_masked_lm, toy_sentinel_lm

RECORDS = [{"text": "the cat sat", "label": "pos"}, {"text": "who was king", "label": "neg"}]
WORDS = Verbalizer({"pos": "blue", "neg": "red"})
SENTINELS = list(range(VOCAB_SIZE, VOCAB_SIZE + 3))


def gap_score(lm: FrozenLM, text_first: bool, answer: list[int]) -> float:
    """Log-probability of what the decoder writes after the first sentinel, summed over the records; plain T5."""
    total = 0.0
    for record, word in zip(RECORDS, ("blue", "red"), strict=True):
        text, gapped = lm.encode(record["text"]), [SENTINELS[0], *lm.encode(word), SENTINELS[1]]
        ids = [*(text + gapped if text_first else gapped + text), *lm.close_ids]
        decoder = torch.tensor([[*lm.start_ids, SENTINELS[0], *answer[:-1]]])
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([ids]), decoder_input_ids=decoder).logits[0, 1:]
        total += float(logits.log_softmax(dim=1)[range(len(answer)), answer].sum())
    return total


def test_proposals_are_templates_with_their_joint_log_probability() -> None:
    lm = toy_sentinel_lm(seed=2, loud=3.0)
    found = propose_templates(lm, RECORDS, WORDS, n=6, beams=10, max_tokens=5)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True) and len(found) > 1
    for source, score in found:
        template = Template.parse(source)
        assert template.fields == ("text",)
        text_first = isinstance(template.parts[0], Field)
        before, after = source.replace("{text}", "").split("{answer}")
        gaps = [*lm.encode(before), SENTINELS[1], *lm.encode(after)]
        best = max(gap_score(lm, text_first, [*gaps, end]) for end in (SENTINELS[2], *lm.eos_ids))
        assert score == pytest.approx(best, abs=1e-3)


def test_with_all_beams_the_empty_template_is_found() -> None:
    lm = toy_sentinel_lm()
    scores = dict(propose_templates(lm, RECORDS, WORDS, n=9, beams=20_000, max_tokens=2))
    assert scores == {
        template: pytest.approx(
            max(gap_score(lm, text_first, [SENTINELS[1], end]) for end in (SENTINELS[2], *lm.eos_ids)), abs=1e-3
        )
        for template, text_first in (("{text} {answer}", True), ("{answer} {text}", False))
    }


def test_only_an_lm_with_sentinels_proposes() -> None:
    with pytest.raises(ConfigError, match="with the sentinels"):
        propose_templates(toy_lm("bart"), RECORDS, WORDS)


@pytest.mark.parametrize("make", [toy_lm, toy_masked_lm], ids=["gpt2", "bert"])
def test_proposed_words_are_the_likeliest_whole_words(make) -> None:
    host = make()
    template = Template.parse("{text} is {answer}")
    found = propose_words(host, template, RECORDS, n=3)
    assert set(found) == {"pos", "neg"} and all(len(own) == 3 for own in found.values())
    for words in found.values():
        Verbalizer({"a": words[0], "b": words[1]}).ids(host)


def test_words_are_proposed_for_labels_of_any_kind() -> None:
    template, records = (
        Template.parse("{text} is {answer}"),
        [one | {"label": one["label"] == "pos"} for one in RECORDS],
    )
    assert list(propose_words(toy_lm(), template, records, n=1)) == ["false", "true"]
    with pytest.raises(ConfigError, match="there are none; give a few of each label"):
        propose_words(toy_lm(), template, [])


def test_search_is_seeded_and_goes_on_where_it_stopped(tmp_path) -> None:
    templates, words = ["{text} {answer}", "{text}: {answer}"], {"pos": ["blue", "red"], "neg": ["red", "green"]}
    asked: list[str] = []

    def score(candidate: Candidate) -> float:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(candidate.key)
        return float(len(candidate.key))

    settings = {"trials": 5, "path": tmp_path / "s.json", "about": "lm1/dev", "seed": 1}
    with pytest.raises(KeyboardInterrupt):
        search(templates, words, score, **settings)
    first = list(asked)
    asked.clear()
    asked_later: list[str] = []
    found = search(templates, words, lambda c: asked_later.append(c.key) or float(len(c.key)), **settings)
    assert len(found) == 5 and len(first) == 3 and not set(first) & set(asked_later) and len(asked_later) == 2
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(len(set(one.candidate.words.values())) == 2 for one in found)  # "red" twice is no candidate
    again = search(templates, words, lambda c: pytest.fail("scored again"), **settings)
    assert again == found
    every = search(templates, words, lambda c: 0.0, **{**settings, "trials": 99, "path": tmp_path / "t.json"})
    assert len(every) == 2 * (2 * 2 - 1)
    with pytest.raises(CheckpointError, match="belongs to the search 'lm1/dev'"):
        search(templates, words, score, **{**settings, "about": "lm2/dev"})
    (tmp_path / "s.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match="is not a search's file"):
        search(templates, words, score, **settings)
    with pytest.raises(ConfigError, match="nothing to try"):
        search([], words, score, **settings)


def test_large_spaces_are_drawn_from(tmp_path) -> None:
    words = {label: [f"{label}{n}" for n in range(50)] for label in ("a", "b", "c")}
    drawn = [
        search(["{text} {answer}"], words, lambda c: 0.0, trials=20, path=tmp_path / name, about="x", seed=seed)
        for name, seed in (("1", 0), ("2", 0), ("3", 1))
    ]
    assert len({one.candidate.key for one in drawn[0]}) == 20 and drawn[0] == drawn[1] != drawn[2]
