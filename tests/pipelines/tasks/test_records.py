"""Records of every format, and every way in which a file can be wrong."""

import hashlib
import sys
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, MissingExtraError
from pipelines.tasks.records import Record, RecordSource, read_records


@pytest.fixture
def write(tmp_path: Path):
    def _write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


def _numbers(path: Path, **options) -> list[int]:
    return [record.number for record in read_records(RecordSource(path=path, **options))]


def test_jsonl_keeps_lines_places_and_the_hash(write) -> None:
    path = write("a.jsonl", b'\xef\xbb\xbf{"text": "x", "label": true}\r\n\n{"text": null, "n": [1]}\n')
    records = read_records(path)
    assert records == [
        Record(1, f"{path}:1", {"text": "x", "label": True}),
        Record(3, f"{path}:3", {"text": None, "n": [1]}),
    ]
    assert (records.path, records.sha256) == (str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def test_csv_with_line_breaks_in_quotes_and_a_field_of_a_million_characters(write) -> None:
    big = "x" * 1_000_000
    path = write("a.csv", f'text,label\r\n"two\nlines, ""quoted""",1\r\n\r\n{big},0\r\n')
    assert read_records(path) == [
        Record(1, f"{path}:2", {"text": 'two\nlines, "quoted"', "label": "1"}),
        Record(2, f"{path}:5", {"text": big, "label": "0"}),
    ]


def test_tsv_with_and_without_quoting(write) -> None:
    path = write("a.tsv", 'a\tb\n"said\tno"\n')
    with pytest.raises(ConfigError, match=r"a.tsv:2: 1 fields, the header has 2"):
        read_records(path)
    (record,) = read_records(RecordSource(path=path, format="tsv_unquoted"))
    assert record.fields == {"a": '"said', "b": 'no"'}


def test_skip_limit_and_sample(write) -> None:
    path = write("a.jsonl", "".join(f'{{"n": {i}}}\n' for i in range(1, 11)))
    assert _numbers(path, skip=3) == [4, 5, 6, 7, 8, 9, 10]
    assert _numbers(path, skip=3, limit=2) == [4, 5]
    assert _numbers(path, sample=20) == list(range(1, 11))
    drawn = _numbers(path, skip=2, limit=6, sample=3, seed=5)
    assert drawn == _numbers(path, skip=2, limit=6, sample=3, seed=5) == sorted(drawn)
    assert set(drawn) < {3, 4, 5, 6, 7, 8}
    assert len(set(drawn)) == 3
    assert len({tuple(_numbers(path, sample=3, seed=seed)) for seed in range(20)}) > 10


def test_every_record_is_as_likely_to_be_sampled(write) -> None:
    path = write("a.jsonl", "".join(f'{{"n": {i}}}\n' for i in range(4)))
    counts = dict.fromkeys((1, 2, 3, 4), 0)
    for seed in range(400):
        for number in _numbers(path, sample=2, seed=seed):
            counts[number] += 1
    # 400 draws of 2 of 4: each number comes 200 times but for chance (standard deviation 10).
    assert all(150 < count < 250 for count in counts.values())


def test_what_lies_behind_the_limit_is_never_read(write) -> None:
    path = write("a.jsonl", '{"n": 1}\n{broken\n')
    assert _numbers(path, limit=1) == [1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a.jsonl:2: not JSON"),
        ("a.jsonl", '{"a": 1}\n["a"]\n', r"a.jsonl:2: expected a JSON object, got list"),
        ("a.jsonl", '{"a": ' + "[" * 100_000 + "\n", r"a.jsonl:1: not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a.jsonl:2: not UTF-8"),
        ("a.jsonl", "\n\n", r"a.jsonl is empty"),
        ("a.csv", "", r"a.csv is empty"),
        ("a.csv", "a,b\n", r"a.csv is empty"),
        ("a.csv", "a,b,a\n1,2,3\n", r"a.csv:1: the header names 'a' twice"),
        ("a.csv", "a,,b\n1,2,3\n", r"a.csv:1: column 2 of the header has no name"),
        ("a.csv", "\na,b\n", r"a.csv:1: the first line is blank"),
        ("a.csv", "a,b\n1,2\n3\n", r"a.csv:3: 1 fields, the header has 2"),
        ("a.csv", 'a,b\n1,"2\n', r"a.csv:2: malformed line"),
        ("a.csv", 'a,b\n"1"x,2\n', r"a.csv:2: malformed line"),
        ("a.txt", "a", r"a.txt cannot be told from its ending; set format to one of jsonl, csv"),
    ],
)
def test_damaged_files(write, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_records(write(name, content))


def test_wrong_sources(write, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nothing.jsonl does not exist; .*`dataset` in a config, .*format=\"hf\" in Python"
    ):
        read_records(tmp_path / "nothing.jsonl")
    with pytest.raises(ConfigError, match="no more than 5 records"):
        read_records(RecordSource(path=write("a.jsonl", '{"a": 1}\n'), skip=5))
    with pytest.raises(ConfigError, match="is a folder; format jsonl needs a file"):
        read_records(RecordSource(path=tmp_path, format="jsonl"))
    for options in ({"limit": 0}, {"sample": 0}, {"skip": -1}, {"format": "xml"}):
        with pytest.raises(ConfigError, match=next(iter(options)) + "|format"):
            RecordSource(path="a", **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hf")
    rows = [{"text": f"t{i}", "label": i % 2, "answers": {"text": [f"a{i}"]}} for i in range(4)]
    train = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": train, "test": train.select([3])}).save_to_disk(str(folder / "saved"))
    (folder / "files").mkdir()
    train.to_parquet(str(folder / "files" / "train.parquet"))
    return folder


def test_saved_hugging_face_dataset(saved: Path) -> None:
    path = saved / "saved"
    records = read_records(RecordSource(path=path, skip=1, limit=2))
    assert [record.fields["text"] for record in records] == ["t1", "t2"]
    assert records[0] == Record(2, f"{path}[train] row 2", {"text": "t1", "label": 1, "answers": {"text": ["a1"]}})
    assert records.sha256 is None
    assert len(read_records(RecordSource(path=path, split="test"))) == 1
    with pytest.raises(ConfigError, match=r"no split 'dev'; it has train, test"):
        read_records(RecordSource(path=path, split="dev"))


@pytest.mark.parametrize("place", ["files/train.parquet", "files"])
def test_hugging_face_file_and_folder_are_streamed(saved: Path, place: str) -> None:
    records = read_records(RecordSource(path=saved / place, limit=3))
    assert [record.fields["label"] for record in records] == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", b'{"text": "a"}\n[1\n'),
        ("train.csv", b"\xff\xfe\x00"),
        ("train.parquet", b"no"),
        ("a.txt2", b""),
    ],
)
def test_damaged_hugging_face_files(tmp_path: Path, name: str, content: bytes) -> None:
    pytest.importorskip("datasets")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"\(split 'train'\) cannot be loaded"):
        read_records(tmp_path)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"frozenlm\[hf\]"):
        read_records(RecordSource(path="some/dataset", format="hf"))
