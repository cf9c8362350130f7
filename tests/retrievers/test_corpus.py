"""Corpus readers: each format as its makers write it, each fault as one error that names its place."""

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrievers import corpus
from retrievers.corpus import detect_format, estimate_passages, read_corpus
from retrievers.errors import CorpusError
from retrievers.types import Passage

PASSAGES = [
    Passage("1", 'Aaron is "a prophet", they say.', "Aaron"),
    Passage("2", "two\nlines\tand a tab", 'The "Big" One'),
    Passage("3", "naïve café — €5", ""),
]


def write_psgs(path: Path, passages: list[Passage] = PASSAGES) -> Path:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t")
    writer.writerow(["id", "text", "title"])
    writer.writerows([passage.id, passage.text, passage.title] for passage in passages)
    raw = text.getvalue().encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["psgs_w100.tsv", "psgs_w100.tsv.gz"])
def test_psgs_w100_with_quotes_tabs_and_newlines(tmp_path: Path, name: str) -> None:
    path = write_psgs(tmp_path / name)
    assert detect_format(path) == "psgs_w100"
    assert list(read_corpus(path)) == PASSAGES


def test_a_field_beyond_csvs_own_limit(tmp_path: Path) -> None:
    long = [Passage("1", "word " * 60_000, "t")]
    csv.field_size_limit(131_072)
    assert list(read_corpus(write_psgs(tmp_path / "long.tsv", long))) == long


def test_beir_folder_and_file(tmp_path: Path) -> None:
    rows = [{"_id": p.id, "title": p.title, "text": p.text, "metadata": {"n": 1}} for p in PASSAGES]
    write_lines(tmp_path / "corpus.jsonl", *rows)
    expected = [Passage(p.id, p.text, p.title, {"n": 1}) for p in PASSAGES]
    assert detect_format(tmp_path) == detect_format(tmp_path / "corpus.jsonl") == "beir"
    assert list(read_corpus(tmp_path)) == list(read_corpus(tmp_path / "corpus.jsonl")) == expected


def test_plain_jsonl(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "passages.jsonl", {"id": 7, "contents": "seven"}, "", {"id": "8", "text": "eight"})
    assert detect_format(path) == "jsonl"
    assert list(read_corpus(path)) == [Passage("7", "seven"), Passage("8", "eight")]
    packed = tmp_path / "passages.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
    assert list(read_corpus(packed)) == [Passage("7", "seven"), Passage("8", "eight")]


def test_a_saved_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"id": ["a", "b"], "text": ["one", "two"], "title": ["A", None]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "many")
    for name in ("one", "many"):
        assert detect_format(tmp_path / name) == "hf"
        assert list(read_corpus(tmp_path / name)) == [Passage("a", "one", "A"), Passage("b", "two")]
    with pytest.raises(CorpusError, match="no split 'dev'; it has train"):
        list(read_corpus(tmp_path / "many", split="dev"))
    with pytest.raises(CorpusError, match="cannot be loaded"):
        list(read_corpus(tmp_path, "hf"))


def test_limit(tmp_path: Path) -> None:
    assert len(list(read_corpus(write_psgs(tmp_path / "a.tsv"), limit=2))) == 2
    with pytest.raises(CorpusError, match="limit is 0"):
        read_corpus(tmp_path / "a.tsv", limit=0)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.tsv", "id\ttext\ttitle\n1\tonly two\n", r"a\.tsv:2: 2 fields, expected 3"),
        ("a.tsv", "id\ttext\ttitle\n1\ta\tb\n\ta\tb\n", r"a\.tsv:3: the id is empty"),
        ("a.tsv", "pid\ttext\ttitle\n", r"a\.tsv:1: header"),
        ("a.tsv", 'id\ttext\ttitle\n1\t"never closed\tb\n', r"a\.tsv:2: malformed line"),
        ("a.tsv", "id\ttext\ttitle\n", "is empty"),
        ("a.tsv", 'id\ttext\ttitle\n1\t"two\nlines"\tb\n2\tc\n', r"a\.tsv:4: 2 fields"),
        ("a.tsv", "id\ttext\ttitle\n1\ta\tb\n2\ta\tb\n1\tc\td\n", r"a\.tsv:4: passage id '1' occurs twice, .*a\.tsv:2"),
        ("a.jsonl", '{"id": 1, "text": "a"}\n{"id": 2,\n', r"a\.jsonl:2: malformed line"),
        ("a.jsonl", '{"id": 1, "text": "a"}\n[1]\n', r"a\.jsonl:2: a JSON list"),
        ("a.jsonl", '{"text": "a"}\n', r"a\.jsonl:1: id is None"),
        ("a.jsonl", '{"id": "", "text": "a"}\n', r"a\.jsonl:1: id is ''"),
        ("a.jsonl", '{"id": true, "text": "a"}\n', r"a\.jsonl:1: id is True"),
        ("a.jsonl", '{"id": 1}\n', r"a\.jsonl:1: text is None"),
        ("a.jsonl", '{"id": 1, "text": "a", "title": 3}\n', r"a\.jsonl:1: title is 3"),
        ("a.jsonl", '{"_id": "x", "text": "a"}\n{"id": "x", "text": "b"}\n', r"'x' occurs twice"),
        ("a.jsonl", "", "is empty"),
        ("a.txt", "just words\n", "cannot tell the format"),
    ],
)
def test_faults_name_their_place(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=told):
        list(read_corpus(tmp_path / name))


def test_bytes_that_are_not_utf8_and_a_torn_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 1, "text": "a"}\n{"id": 2, "text": "\xff"}\n')
    with pytest.raises(CorpusError, match=r"a\.jsonl:2: not UTF-8"):
        list(read_corpus(tmp_path / "a.jsonl"))
    whole = gzip.compress(b'{"id": 1, "text": "a"}\n' * 3)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(CorpusError, match=r"b\.jsonl\.gz"):
        list(read_corpus(tmp_path / "b.jsonl.gz"))


def test_paths_and_formats_are_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there is no corpus at"):
        read_corpus(tmp_path / "gone.tsv")
    with pytest.raises(CorpusError, match="there is no corpus file"):
        read_corpus(tmp_path / "gone.tsv", "psgs_w100")
    with pytest.raises(CorpusError, match="is a folder without"):
        read_corpus(tmp_path)
    with pytest.raises(CorpusError, match="unknown corpus format 'csv'"):
        read_corpus(tmp_path, "csv")  # type: ignore[arg-type]


def test_a_duplicate_far_away_is_found_and_a_mere_collision_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_RUN", 16)
    rows = [{"id": str(i), "text": "t"} for i in range(500)]
    path = write_lines(tmp_path / "a.jsonl", *rows, {"id": "3", "text": "again"}, *rows[:0])
    with pytest.raises(CorpusError, match=r"a\.jsonl:501: passage id '3' occurs twice, first at .*a\.jsonl:4;"):
        list(read_corpus(path))
    write_lines(tmp_path / "a.jsonl", *rows)
    assert len(list(read_corpus(path))) == 500
    # Every id gets one of 7 hashes: nothing but collisions, and not one duplicate.
    monkeypatch.setattr(corpus, "_hash", lambda passage_id: len(passage_id) + int(passage_id) % 5)
    assert len(list(read_corpus(path, limit=60))) == 60


def test_reading_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    with path.open("w") as stream:
        for i in range(20_000):
            stream.write(json.dumps({"id": str(i), "text": "word " * 100}) + "\n")

    def peak(passages: Iterator[Passage]) -> int:
        tracemalloc.start()
        for _ in passages:
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert path.stat().st_size > 10_000_000
    assert peak(read_corpus(path)) < 4_000_000


def test_estimate(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *({"id": f"{i:05}", "text": "word"} for i in range(3000)))
    assert estimate_passages(path) == 3000
    (tmp_path / "b.jsonl").write_text("")
    assert estimate_passages(tmp_path / "b.jsonl", "jsonl") == 0


@pytest.mark.shared_data
def test_real_corpora_are_read_whole(shared_data: Path) -> None:
    assert sum(1 for _ in read_corpus(shared_data / "data" / "wiki_mix")) == 12_738
    assert sum(1 for _ in read_corpus(shared_data / "data" / "scifact")) == 5_183
