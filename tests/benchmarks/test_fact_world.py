"""The made-up world of the recursion benchmark: what is told, what never is, and where answers stand."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fact_world_lm import BOS, EOS, PAD, answers, pieces, word_tokenizer
from benchmarks.fact_world_relations import BY_NAME, RELATIONS
from benchmarks.fact_world_text import SPLITS, Shares, World, questions, tell
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
WORLD = World.make(30, seed=0)
TOLD = list(islice(tell(WORLD, Shares(), np.random.default_rng(0)), 4000))


def test_a_two_hop_fact_is_its_two_halves() -> None:
    known = {(fact.head, fact.path[0]): fact.tail for fact in WORLD.facts}
    for fact in WORLD.chained:
        assert fact.tail == known[known[fact.head, fact.path[0]], fact.path[1]]


def test_the_same_seed_gives_the_same_world_and_questions() -> None:
    assert World.make(30, seed=0) == WORLD
    assert World.make(30, seed=1).facts != WORLD.facts
    assert questions(WORLD, "test", 0) == questions(WORLD, "test", 0)


def test_two_hop_facts_are_told_of_one_split_only() -> None:
    text = "\n".join(TOLD)
    seen = {"told": 0, "other": 0}
    for fact in WORLD.chained:
        first, last = (BY_NAME[name] for name in fact.path)
        beginnings = [
            wording.replace("{x}", phrase.replace("{x}", fact.head)).partition("{y}")[0]
            for phrase in first.phrases
            for wording in (*last.told, *last.asked)
        ]
        split = "told" if WORLD.split[fact.head] == "told" else "other"
        seen[split] += sum(beginning in text for beginning in beginnings)
    assert seen["told"] > 100
    assert seen["other"] == 0


def test_questions_are_told_of_one_split_only_and_one_hop_facts_of_all() -> None:
    for text in TOLD:
        if "question :" in text:
            about = next(word for word in text.partition("question :")[2].split() if word in WORLD.split)
            assert WORLD.split[about] == "told"
    told = {(text.split()[0], text.split()[-2]) for text in TOLD if "question" not in text}
    for fact in WORLD.facts:
        assert (fact.head, fact.tail) in told


def test_wordings_of_questions_are_new_and_of_known_words() -> None:
    known, text = set(" ".join(TOLD).split()), "\n".join(TOLD)
    for relation in RELATIONS:
        assert not set(relation.held_out) & set(relation.asked)
        for wording in (*relation.held_out, *relation.held_out_phrases):
            assert {word for word in wording.split() if word != "{x}"} <= known
    for asked in questions(WORLD, "told", 0):
        assert asked["question"] not in text


def test_splits_share_no_question() -> None:
    ids = [one["question"] for split in SPLITS for one in questions(WORLD, split, 0)]
    assert len(ids) == len(set(ids)) == len(WORLD.facts) + len(WORLD.chained)


def test_answers_are_the_last_names_of_texts() -> None:
    name = 100
    ids = torch.tensor([[BOS, name + 1, 7, name + 2, 8, EOS, BOS, name + 3, 9, name + 4, EOS, PAD]])
    assert answers(ids, name).nonzero()[:, 1].tolist() == [3, 9]


def test_every_word_is_a_token() -> None:
    tokenizer = word_tokenizer(WORLD)
    for text in TOLD[:50]:
        assert tokenizer(text)["input_ids"] == [BOS, *(pieces(WORLD).index(word) for word in text.split())]


@pytest.mark.slow
def test_the_script_makes_two_decoders_and_their_questions(tmp_path: Path) -> None:
    out = tmp_path / "world"
    options = ["--out", str(out), "--entities", "20", "--depth", "1", "--steps", "3"]
    subprocess.run([sys.executable, "benchmarks/fact_world.py", *options], cwd=ROOT, check=True, timeout=PATIENCE)
    results = json.loads((out / "results.json").read_text())
    assert (results["shallow"]["layers"], results["deep"]["layers"]) == (1, 2)
    assert {path.name for path in out.iterdir()} == {
        *("shallow", "deep", "questions", "text.txt", "world.json", "results.json")
    }
    assert len((out / "questions" / "test.jsonl").read_text().splitlines()) > 50
