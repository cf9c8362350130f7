"""The embedded mixture keeps what its README promises: shape, sizes, labels, and splits that share nothing."""

import json
import re
from collections import Counter
from itertools import combinations

import pytest

from pipelines.assets import config_folder
from pipelines.tasks.records import RecordSource, read_records
from pipelines.tasks.spec import TaskSpec
from pipelines.tasks.task import load_tasks
from retrievers.metrics import has_answer

DEMO = config_folder() / "demo"
TASKS = ("subject", "question_type", "answers_it", "reading")
SPLITS = ("train", "dev", "test")
ROWS = {
    task: {
        split: [record.fields for record in read_records(RecordSource(path=DEMO / "tasks" / task / f"{split}.jsonl"))]
        for split in SPLITS
    }
    for task in TASKS
}
QUESTIONS = {
    split: {row["text"]: row for row in map(json.loads, (DEMO / "queries" / f"{split}.jsonl").open(encoding="utf-8"))}
    for split in SPLITS
}
PASSAGES = {row["_id"]: row for row in map(json.loads, (DEMO / "corpus.jsonl").open(encoding="utf-8"))}
GOLD = {
    split: dict(line.split("\t")[:2] for line in (DEMO / "qrels" / f"{split}.tsv").read_text().splitlines()[1:])
    for split in SPLITS
}


def test_shape_and_sizes() -> None:
    for task in TASKS:
        keys = {"task", "text", "label"} | ({"text_b"} if task in ("answers_it", "reading") else set())
        assert all(set(row) == keys and row["task"] == task for rows in ROWS[task].values() for row in rows)
    table = re.findall(r"^\| `(\w+)` .* \| (\d+) / (\d+) / (\d+) \|$", (DEMO / "tasks/README.md").read_text(), re.M)
    assert {task: tuple(map(int, sizes)) for task, *sizes in table} == {
        task: tuple(len(ROWS[task][split]) for split in SPLITS) for task in TASKS
    }
    assert sum(path.stat().st_size for path in (DEMO / "tasks").rglob("*.jsonl")) < 300_000


def test_labels() -> None:
    for split in SPLITS:
        labels = {task: Counter(row["label"] for row in ROWS[task][split]) for task in TASKS}
        assert set(labels["subject"]) == {"science", "places", "history", "technology", "arts"}
        assert set(labels["question_type"]) == {"who", "when", "where", "how many", "what"}
        assert abs(labels["answers_it"]["yes"] - labels["answers_it"]["no"]) <= 1


def test_splits_share_no_text() -> None:
    for task in TASKS:
        texts = [{row["text"] for row in ROWS[task][split]} for split in SPLITS]
        asked = [{row.get("text_b", "") for row in ROWS[task][split]} - {""} for split in SPLITS]
        for one, other in [*combinations(texts, 2), *combinations(asked, 2)]:
            assert not one & other


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_comes_from_its_split(split: str) -> None:
    firsts = [PASSAGES[id_]["text"] for id_ in sorted(set(GOLD[split].values()))]
    for task in ("subject", "answers_it", "reading"):
        for row in ROWS[task][split]:
            assert any(text.startswith(row["text"][:40]) for text in firsts)
    for row in ROWS["question_type"][split]:
        assert row["text"] in QUESTIONS[split]
    for task in ("answers_it", "reading"):
        assert all(row["text_b"] in QUESTIONS[split] for row in ROWS[task][split])


@pytest.mark.parametrize("split", SPLITS)
def test_excerpts_hold_the_answer_exactly_where_they_should(split: str) -> None:
    for row in ROWS["reading"][split]:
        assert row["label"] == QUESTIONS[split][row["text_b"]]["answers"][0]
        assert has_answer(row["text"], [row["label"]])
    for row in ROWS["answers_it"][split]:
        answers = QUESTIONS[split][row["text_b"]]["answers"]
        assert has_answer(row["text"], answers) == (row["label"] == "yes")


def test_the_tasks_load() -> None:
    def records(task: str) -> dict[str, RecordSource]:
        return {split: RecordSource(path=DEMO / "tasks" / task / f"{split}.jsonl") for split in SPLITS}

    same = {label: label for label in ("who", "when", "where", "how many", "what")}
    kinds, reading = load_tasks(
        [
            TaskSpec(
                name="kinds", records=records("question_type"), metric="accuracy", template="{text}", verbalizer=same
            ),
            TaskSpec(
                name="reading",
                records=records("reading"),
                metric="em_f1",
                template="{text} Question: {text_b}",
                target="{label}",
            ),
        ]
    )
    assert kinds.choices == ("who", "when", "where", "how many", "what")
    assert [len(reading.rows[split]) for split in SPLITS] == [144, 24, 96]
