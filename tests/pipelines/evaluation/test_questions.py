"""Question files of every format, and every way in which they can be wrong."""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import Questions
from pipelines.errors import ConfigError
from pipelines.evaluation.questions import Question, read_questions


@pytest.fixture
def write(tmp_path: Path):
    def _write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


def test_nq_open_jsonl(write) -> None:
    path = write(
        "q.jsonl", '{"question": "who?", "answer": ["A", "B", "A"]}\n\n{"question": "when?", "answer": "1990"}\n'
    )
    questions = read_questions(path)
    assert questions == [Question("1", "who?", ("A", "B")), Question("3", "when?", ("1990",))]
    assert (questions.path, questions.sha256) == (path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_plain_jsonl_with_ids_and_gold_passages(write) -> None:
    path = write("q.jsonl", '{"id": 7, "question": "q", "answers": ["x"], "gold_passages": ["p1", "p2"]}\n')
    assert read_questions(path) == [Question("7", "q", ("x",), ("p1", "p2"))]


def test_byte_order_mark_and_windows_line_ends(write) -> None:
    path = write("q.jsonl", b'\xef\xbb\xbf{"question": "q", "answers": ["x"]}\r\n')
    assert read_questions(path) == [Question("1", "q", ("x",))]


def test_json_list(write) -> None:
    path = write("q.json", json.dumps([{"question": "q", "answers": ["x"], "ctxs": []}]))
    assert read_questions(path) == [Question("1", "q", ("x",))]


@pytest.mark.parametrize(
    ("line", "text", "answers"),
    [
        ("who sang it\t['Linda Davis', \"it's\"]", "who sang it", ("Linda Davis", "it's")),
        ('"who sang ""it"""\t"[\'a\']"', 'who sang "it"', ("a",)),
        ("\"the great\" author\t['a']", '"the great" author', ("a",)),
        ('who\t"[\'say ""x""\']"', "who", ('say "x"',)),
    ],
)
def test_dpr_csv(write, line: str, text: str, answers: tuple[str, ...]) -> None:
    assert read_questions(write("nq.qa.csv", line + "\n")) == [Question("1", text, answers)]


def test_answers_are_never_evaluated(write, tmp_path: Path) -> None:
    evil = f"q\t__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()\n"
    with pytest.raises(ConfigError, match="no Python list"):
        read_questions(write("q.csv", evil))
    assert not (tmp_path / "made").exists()


def test_squad_and_its_impossible_questions(write) -> None:
    qas = [
        {"id": "a", "question": "q1", "answers": [{"text": "x"}, {"text": "y"}, {"text": "x"}]},
        {"id": "b", "question": "q2", "answers": [], "is_impossible": True},
    ]
    path = write("s.json", json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": qas}]}]}))
    assert read_questions(path) == [Question("a", "q1", ("x", "y")), Question("b", "q2")]


def test_beir_folder_keeps_judged_questions_and_counts_the_others(write) -> None:
    write("b/queries.jsonl", "".join(f'{{"_id": "{i}", "text": "q{i}"}}\n' for i in (1, 2, 3)))
    qrels = write("b/qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\tp1\t2\n1\tp2\t0\n1\tp3\t1\n3\tp9\t0\n")
    questions = read_questions(qrels.parent.parent)
    assert questions == [Question("1", "q1", (), ("p1", "p3"), (2, 1))]
    assert questions.unjudged == 2


def test_trec_qrels_and_a_config_block(write) -> None:
    path = write("q.jsonl", '{"_id": "1", "text": "q"}\n{"_id": "2", "text": "r"}\n')
    qrels = write("q.qrels", "1 0 p1 1\n2 0 p2 1\n")
    block = Questions(path=path, qrels=qrels, limit=1)
    assert read_questions(block) == [Question("1", "q", (), ("p1",), (1,))]
    assert len(read_questions(block, limit=5)) == 1
    assert len(read_questions(path, limit=2)) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", '{"question": "q", "answers": ["x"]}\n{"question": \n', r"q.jsonl:2: not JSON"),
        ("q.jsonl", '["q"]\n', r"q.jsonl:1: expected a JSON object, got list"),
        ("q.jsonl", '{"answers": ["x"]}\n', r"q.jsonl:1: no question"),
        ("q.jsonl", '{"question": "  ", "answers": ["x"]}\n', r"q.jsonl:1: the question is '  '"),
        ("q.jsonl", '{"question": "q", "answers": ["x", ""]}\n', r"q.jsonl:1: a gold answer is ''"),
        ("q.jsonl", '{"question": "q", "answers": [3]}\n', r"q.jsonl:1: a gold answer is 3"),
        ("q.jsonl", '{"question": "q", "answers": {"a": 1}}\n', r"q.jsonl:1: answers are dict"),
        ("q.jsonl", '{"question": "q", "id": [1], "answers": []}\n', r"q.jsonl:1: id is \[1\]"),
        ("q.jsonl", '{"question": "q", "gold_passages": "p"}\n', r"q.jsonl:1: gold_passages"),
        ("q.jsonl", '{"question": "q", "id": 1}\n{"question": "q", "id": "1"}\n', r"q.jsonl:2: id '1' is taken .*:1"),
        ("q.jsonl", b'{"question": "q"}\n\xff\n', r"q.jsonl:2: not UTF-8"),
        ("q.jsonl", "", r"q.jsonl is empty"),
        ("q.csv", "", r"q.csv has no questions"),
        ("q.csv", "q ['x']\n", r"q.csv:1: expected a question, a tab"),
        ("q.csv", "q\t'x'\n", r"q.csv:1: answers are str"),
        ("q.csv", "q\t['x'\n", r"q.csv:1: answers are no Python list"),
        ("q.csv", "q\t" + "[" * 5000 + "\n", r"q.csv:1: answers are no Python list"),
        ("q.json", "{}", r"q.json: expected 'data' to be a list"),
        (
            "q.json",
            '{"data": [{"paragraphs": [{"qas": [{}]}]}]}',
            r"data\[0\].paragraphs\[0\].qas\[0\]: expected 'answers'",
        ),
        ("q.json", "[" * 100_000, r"q.json: not JSON"),
        ("q.json", "[3]", r"q.json\[0\]: expected a JSON object, got int"),
        ("q.parquet", "x", r"cannot be told from its ending"),
    ],
)
def test_malformed_files_name_file_and_line(write, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_questions(write(name, content))


def test_missing_files(tmp_path: Path, write) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"folder without queries\.jsonl"):
        read_questions(tmp_path)
    path = write("q.jsonl", '{"_id": "1", "text": "q"}\n')
    with pytest.raises(ConfigError, match="qrels"):
        read_questions(path, qrels=tmp_path / "none.tsv")
    with pytest.raises(ConfigError, match=r"q\.tsv:1"):
        read_questions(path, qrels=write("q.tsv", "1\tp1\tmuch\n"))
    with pytest.raises(ConfigError, match="do their ids belong together"):
        read_questions(path, qrels=write("q2.tsv", "9\tp1\t1\n"))
    with pytest.raises(ConfigError, match="unknown question format 'xml'"):
        read_questions(path, format="xml")


def test_a_line_without_end_is_refused(write) -> None:
    with pytest.raises(ConfigError, match=r"q\.jsonl:1: longer than"):
        read_questions(write("q.jsonl", b"x" * (2**20 + 1)), format="jsonl")


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=80), st.sampled_from([".jsonl", ".csv", ".json"]))
def test_any_bytes_give_questions_or_a_config_error(tmp_path_factory, content: bytes, ending: str) -> None:
    path = tmp_path_factory.mktemp("q") / f"q{ending}"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        assert read_questions(path)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("nq_open/nq-open-test.jsonl", 3610, "December 1972"),
        ("nq_open/nq-open-train-8757.tsv", 8757, "Linda Davis"),
        ("wiki_mix/queries/squad_dev.jsonl", 1381, "1973"),
    ],
)
def test_real_files(shared_data: Path, name: str, count: int, first: str) -> None:
    questions = read_questions(shared_data / "data" / name)
    assert len(questions) == count
    assert first in questions[0].answers


@pytest.mark.shared_data
def test_scifact(shared_data: Path) -> None:
    questions = read_questions(shared_data / "data/scifact")
    assert len(questions) == 300
    assert sum(len(question.gold_passages) for question in questions) == 339
