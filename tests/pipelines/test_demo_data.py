"""The embedded mini-encyclopedia keeps what it promises: sizes, answers that stand in their passage, splits that
share nothing."""

import json
import re
from collections import Counter
from pathlib import Path

from pipelines.assets import config_folder
from retrievers.metrics import has_answer

DEMO = config_folder() / "demo"
SPLITS = ("train", "dev", "test")


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


PASSAGES = {row["_id"]: row for row in _rows(DEMO / "corpus.jsonl")}
QUESTIONS = {split: _rows(DEMO / "queries" / f"{split}.jsonl") for split in SPLITS}
GOLD = {
    split: dict(line.split("\t")[:2] for line in (DEMO / "qrels" / f"{split}.tsv").read_text().splitlines()[1:])
    for split in SPLITS
}


def test_sizes() -> None:
    assert len(PASSAGES) >= 250
    assert sum(map(len, QUESTIONS.values())) >= 500
    assert len({row["metadata"]["subject"] for row in PASSAGES.values()}) > 20
    lengths = [len(row["text"].split()) for row in PASSAGES.values()]
    assert min(lengths) >= 60
    assert max(lengths) <= 110


def test_every_question_has_a_gold_passage_that_holds_its_first_answer() -> None:
    for split in SPLITS:
        assert {row["_id"] for row in QUESTIONS[split]} == set(GOLD[split])
        for row in QUESTIONS[split]:
            assert has_answer(PASSAGES[GOLD[split][row["_id"]]]["text"], [row["answers"][0]]), row
            assert len(row["answers"][0].split()) <= 5


def test_questions_are_worded_unlike_their_passage() -> None:
    for split in SPLITS:
        for row in QUESTIONS[split]:
            passage = _words(PASSAGES[GOLD[split][row["_id"]]]["text"])
            question = _words(row["text"])
            runs = {tuple(passage[i : i + 4]) for i in range(len(passage) - 3)}
            assert not runs & {tuple(question[i : i + 4]) for i in range(len(question) - 3)}, row


def test_splits_share_no_question_and_no_gold_passage() -> None:
    texts = Counter(row["text"].lower() for rows in QUESTIONS.values() for row in rows)
    assert max(texts.values()) == 1
    gold = [set(GOLD[split].values()) for split in SPLITS]
    assert not gold[0] & gold[1]
    assert not gold[0] & gold[2]
    assert not gold[1] & gold[2]


def test_the_embedded_corpus_has_entities_that_are_easily_confused() -> None:
    titles = [row["title"].lower() for row in PASSAGES.values()]
    for pair in (("mercury (planet)", "mercury (element)"), ("suez canal", "panama canal")):
        assert set(pair) <= set(titles)
