"""A tour of what can go wrong, through the command line: one clear message each, the right exit code, nothing lost.

`test_cli.py` has the commands themselves and wrong use of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import Pipeline
from pipelines.cli import main
from pipelines.errors import FrozenLMError
from tests.retrievers import toys
from tests.toys import toy_folder

PASSAGES = [
    ("p1", "France", "paris is the capital of france"),
    ("p2", "Germany", "berlin is a city in germany"),
    ("p3", "Egypt", "the nile is a river in egypt"),
]
QUESTIONS = [("q1", "what is the capital of france", "paris"), ("q2", "which river is in egypt", "the nile")]
ASKED = "what is the capital of france"
TRAINING = (
    "prompt: {name: p, length: 4}\n"
    "training: {questions: [{path: questions.jsonl}], steps: 60, batch_size: 2, save_every: 5, eval_every: 60}\n"
)
PLUGINS = """
from retrievers.types import Hit

class Nan:
    def retrieve(self, queries, k):
        return [[Hit("a", float("nan"), "x")] for _ in queries]

class Twice(Nan):
    def retrieve(self, queries, k):
        return [[Hit("a", 1.0, "x"), Hit("a", 1.0, "x")] for _ in queries]

class Short(Nan):
    def retrieve(self, queries, k):
        return []

class Raises(Nan):
    def retrieve(self, queries, k):
        raise RuntimeError("the server is down")

class Exits(Nan):
    def retrieve(self, queries, k):
        raise SystemExit(3)

class Good(Nan):
    def retrieve(self, queries, k):
        return [[Hit("a", 1.0, "paris")] for _ in queries]

class BadFingerprint(Good):
    def fingerprint(self):
        raise ValueError("no such index")

class BadClose(Good):
    def close(self):
        raise ValueError("lost the connection")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy LM, a corpus, questions, qrels, plug-ins and a config; its indexes are built on first use."""
    folder = tmp_path_factory.mktemp("world")
    toy_folder("llama", folder)
    lines(folder / "corpus.jsonl", [{"id": i, "title": t, "text": x} for i, t, x in PASSAGES])
    lines(folder / "questions.jsonl", [{"id": i, "question": q, "answer": [a]} for i, q, a in QUESTIONS])
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp1\t1\nq2\tp3\t1\n")
    (folder / "bad_input_plugins.py").write_text(PLUGINS)
    (folder / "job.yaml").write_text(
        f"kind: frozen_reader\nworkspace: {folder}/work\ncorpus: {{path: corpus.jsonl, format: jsonl}}\n"
        "retriever: {kind: bm25, stemmer: null, stopwords: none}\nretrieve_k: 3\nbuild_index: on_first_use\n"
        "lm: {model: ./llama}\npacking: {answer_reserve: 8}\ngeneration: {max_new_tokens: 6}\n"
        "evaluation: {recall_at: [1, 2]}\n"
    )
    (folder / "train.yaml").write_text((folder / "job.yaml").read_text() + TRAINING)
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Shell:
    """Runs commands; every one of them must end without a traceback."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Exit code, standard output, standard error on one line."""
        self.capsys.readouterr()  # what making a toy has said
        code = main([str(word) for word in words])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out, " ".join(said.err.split())

    def fails(self, code: int, says: str, *words: object) -> None:
        """The command ends with `code` and one message of ours that has `says` in it."""
        found, out, err = self(*words, "-q")
        assert (found, out) == (code, "") and says in err, err
        assert err.startswith("error: ") and err.count("error: ") == 1 and "bug of frozenlm" not in err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("retrieve_k", "retreive_k", ":5: retreive_k: unknown key; did you mean 'retrieve_k'?"),
        ("retrieve_k: 3", "retrieve_k: '3'", ":5: retrieve_k: input should be a valid integer, got '3' (text)"),
        ("retrieve_k: 3", "retrieve_k: 3\nretrieve_k: 4", ":6: duplicate key 'retrieve_k', first at"),
        ("kind: bm25", "kind: bm52", ":4: retriever.kind: there is no retriever 'bm52'; did you mean 'bm25'?"),
        ("{model: ./llama}", "[", "not valid YAML"),
    ],
)
def test_configs(world: Path, tmp_path: Path, run: Shell, old: str, new: str, says: str) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text((world / "job.yaml").read_text().replace(old, new))
    run.fails(2, says, "ask", config, ASKED)
    with pytest.raises(FrozenLMError):
        Pipeline.from_config(config)


def test_an_unknown_retriever_is_one_fault(world: Path, tmp_path: Path, run: Shell) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text((world / "job.yaml").read_text().replace("kind: bm25", "kind: bm52"))
    assert "unknown key" not in run("ask", config, ASKED)[2]


@pytest.mark.parametrize(
    ("setting", "question", "code", "says"),
    [
        ("seed=0", "x" * 1_000_000, 2, "1,000,000 characters, at most 100,000 are taken"),
        ("seed=0", "what is \udcff", 2, "question 0 is not Unicode text: character 8"),
        ("seed=0", "river " * 15_000, 1, "shorten the question or raise the window"),
        ("lm.window=12", ASKED, 1, "the question takes 10 tokens"),
        ("lm.window=5", ASKED, 2, "a window of 5 tokens leaves -3 for passages and question"),
        ("lm.window=1000", ASKED, 2, "window must be in 1..96, got 1000"),
        ("generation.max_new_tokens=9", ASKED, 2, "packing.answer_reserve keeps only 8 tokens"),
        ("packing={overflow: error, answer_reserve: 60}", ASKED, 1, "set overflow to drop or truncate_last"),
        ("reranker={kind: cross_encoder, model: ./none}", ASKED, 1, "cannot load"),
        ("reranker={kind: cross_encoder, model: ./none, checkpoint: r}", ASKED, 1, "no trained re-ranker at"),
        ("prompt={name: nowhere}", ASKED, 1, "run `frozenlm train CONFIG` from this directory"),
    ],
)
def test_settings_and_questions(world: Path, run: Shell, setting: str, question: str, code: int, says: str) -> None:
    run.fails(code, says, "ask", world / "job.yaml", question, "--set", setting)


@pytest.mark.parametrize(
    ("setting", "question", "says"),
    [
        ("retrieve_k=1000", ASKED, "= read by the LM: 3 of 3 passages"),
        ("lm.window=24", ASKED, "no passage fits the LM's window beside the question: 0 of 3 read"),
        ("retriever={kind: bm25}", "the of a", "no passage was found; the LM answered without any"),
    ],
)
def test_few_or_no_passages_are_no_error(world: Path, run: Shell, setting: str, question: str, says: str) -> None:
    code, out, _ = run("ask", world / "job.yaml", question, "--set", setting)
    assert code == 0 and says in out


@pytest.mark.parametrize(("overflow", "read"), [("drop", 0), ("truncate_last", 1)])
def test_a_passage_longer_than_the_window(world: Path, tmp_path: Path, run: Shell, overflow: str, read: int) -> None:
    corpus = lines(tmp_path / "long.jsonl", [{"id": "long", "text": "paris " * 5000}])
    chosen = ["--set", f"corpus.path={corpus}", "--set", f"packing.overflow={overflow}"]
    code, out, _ = run("ask", world / "job.yaml", "paris", "--workspace", tmp_path, "--json", *chosen)
    assert code == 0 and sum(passage["in_context"] for passage in json.loads(out)["passages"]) == read


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty: not one passage was found"),
        ('{"id": "a", "text": "x y"}\n{"id": "a", "text": "z"}\n', ":2: passage id 'a' occurs twice"),
        ('{"id": "a"}\n', ":1: text is None"),
        ('{"id": "a", "text": "x"}\n{oops\n', ":2: malformed line"),
        ('{"id": "a", "text": ""}\n', "not one term in all passages"),
        ("\udcff\n", ":1: not UTF-8"),
    ],
)
def test_corpora(world: Path, tmp_path: Path, run: Shell, content: str, says: str) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(content.encode("utf-8", "surrogateescape"))
    chosen = ["--workspace", tmp_path, "--set", f"corpus.path={corpus}"]
    run.fails(1, says, "index", world / "job.yaml", *chosen)
    corpus.write_text('{"id": "a", "text": "paris"}\n')
    assert run("index", world / "job.yaml", *chosen)[0] == 0


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "flip":
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    elif how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.unlink()


def test_a_damaged_index_is_named_and_built_again(world: Path, tmp_path: Path, run: Shell) -> None:
    asked = ("ask", world / "job.yaml", ASKED, "--workspace", tmp_path)
    answer = run(*asked)[1]
    index = next((tmp_path / "index").iterdir())
    for path in sorted(path for path in index.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for how in ("flip", "cut", "gone"):
            damage(path, how)
            run.fails(1, "frozenlm index CONFIG --rebuild", *asked)
            run.fails(
                1, "manifest.json" if path.name == "manifest.json" else str(path), "index", *asked[1:2], *asked[3:]
            )
            assert run("verify", tmp_path)[0] == 1
            path.write_bytes(whole)
    damage(index / "manifest.json", "gone")
    assert run("index", world / "job.yaml", "--workspace", tmp_path, "--rebuild")[0] == 0
    assert run(*asked, "-q")[1] == answer and run("verify", tmp_path)[0] == 0


def test_the_passages_of_a_trec_run(world: Path, tmp_path: Path, run: Shell) -> None:
    (tmp_path / "run.trec").write_text("q1 Q0 p1 1 2.0 x\n")
    block = (
        f"{{kind: precomputed, format: trec, file: {tmp_path}/run.trec, questions: {{path: {world}/questions.jsonl}}}}"
    )
    chosen = ["--workspace", tmp_path, "--set", f"retriever={block}"]
    asked = ("ask", world / "job.yaml", ASKED, *chosen)
    assert "* France [p1]" in run(*asked)[1]
    run.fails(1, "no precomputed results for the question 'who'", "ask", world / "job.yaml", "who", *chosen)
    damage(next((tmp_path / "index").iterdir()) / "passages.jsonl", "cut")
    run.fails(1, "frozenlm index CONFIG --rebuild", *asked)
    assert run("index", world / "job.yaml", "--rebuild", *chosen)[0] == 0
    assert "* France [p1]" in run(*asked)[1]


def test_another_encoder_under_the_same_path(world: Path, tmp_path: Path, run: Shell) -> None:
    encoder, weights = tmp_path / "encoder", tmp_path / "encoder" / "model.safetensors"
    other = toys.save_sentence_transformer(tmp_path / "other", seed=1)
    toys.save_sentence_transformer(encoder)
    block = f"{{kind: dense, encoder: {{model: {encoder}, max_length: 32}}}}"
    asked = ("ask", world / "job.yaml", ASKED, "--workspace", tmp_path, "--set", f"retriever={block}")
    assert run(*asked)[0] == 0
    own = weights.read_bytes()
    shutil.copyfile(other / "model.safetensors", weights)
    run.fails(1, "was built by encoder", *asked)
    weights.write_bytes(own[:100])
    run.fails(1, "cannot load the sentence-transformers model", *asked)
    weights.write_bytes(own)
    tokenizer = encoder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"cat"', '"tiger"'))
    run.fails(1, "build the index again with this one; from the command line", *asked)


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("Nan", 1, "bad_input_plugins.Nan: query 0 ('what is the capital of france'), passage 'a': score is nan"),
        ("Twice", 1, "passage 'a' occurs twice"),
        ("Short", 1, "bad_input_plugins.Short: returned 0 lists for 1 queries"),
        ("Raises", 1, "bad_input_plugins.Raises: retrieve raised RuntimeError: the server is down"),
        ("Exits", 1, "bad_input_plugins.Exits: retrieve raised SystemExit: 3"),
        ("Missing", 2, "has no attribute 'Missing'"),
    ],
)
def test_plugins(world: Path, run: Shell, monkeypatch: pytest.MonkeyPatch, name: str, code: int, says: str) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(world)])
    chosen = ["--allow-import", "--set", f"retriever={{kind: 'bad_input_plugins:{name}'}}"]
    run.fails(code, says, "ask", world / "job.yaml", ASKED, *chosen)


def test_a_plugin_that_fails_beside_retrieving(
    world: Path, tmp_path: Path, run: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(world)])
    chosen = ["--allow-import", "--set", "retriever={kind: 'bad_input_plugins:%s'}"]
    questions = ("evaluate", world / "job.yaml", "--questions", world / "questions.jsonl", "--out", tmp_path / "out")
    says = "bad_input_plugins.BadFingerprint: fingerprint raised ValueError: no such index"
    run.fails(1, says, *questions, chosen[0], chosen[1], chosen[2] % "BadFingerprint")
    code, out, err = run(*questions, chosen[0], chosen[1], chosen[2] % "BadClose", "--json")
    assert code == 0 and json.loads(out)["n"] == 2
    assert "bad_input_plugins.BadClose: close raised ValueError: lost the connection" in err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", None, "holds no tokenizer"),
        ("tokenizer.json", "{", "cannot load the tokenizer"),
        ("config.json", None, "holds no config.json"),
        ("config.json", "{", "cannot load the config"),
        ("model.safetensors", None, "cannot load the weights"),
        ("model.safetensors", "x", "cannot load the weights"),
        ("vocab_size", "64", "config and weights do not belong together: 'lm_head.weight' is [128, 32]"),
    ],
)
def test_lm_folders(world: Path, tmp_path: Path, run: Shell, name: str, content: str | None, says: str) -> None:
    folder = shutil.copytree(world / "llama", tmp_path / "lm")
    if name == "vocab_size":
        config = json.loads((folder / "config.json").read_text()) | {name: 64}
        (folder / "config.json").write_text(json.dumps(config))
    elif content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    run.fails(1, says, "ask", world / "job.yaml", ASKED, "--set", f"lm.model={folder}")


def test_modules(world: Path, tmp_path: Path, run: Shell) -> None:
    job = (world / "train.yaml", "--workspace", tmp_path, "--set", "training.steps=2")
    asked = ("ask", job[0], ASKED, *job[1:])
    run.fails(2, "no training block; there is nothing to train", "train", world / "job.yaml")
    assert run("train", *job)[0] == 0
    answer = run(*asked)[1]
    other = toy_folder("llama", tmp_path, seed=7)
    run.fails(1, "was trained for another LM", *asked, "--set", f"lm.model={other}")
    run.fails(2, "holds a run with other settings", "train", *job[:-1], "training.steps=3")
    run.fails(1, "holds a prompt of 4 tokens", *asked, "--set", "prompt.length=5")
    for path in (tmp_path / "modules" / "p").iterdir():
        for how in ("flip", "cut", "gone"):
            damage(path, how)
            run.fails(1, path.name, *asked)
            assert run("verify", tmp_path)[0] == 1
            assert run("train", *job)[0] == 0  # a finished run only saves again
            assert run(*asked)[1] == answer


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty; expected one question a line"),
        ('{"id": 1\n', ":1: not JSON"),
        ('{"id": "a", "question": "who is king"}\n', "question 'a' has no answers to measure against"),
        ('{"id": "a", "question": " ", "answer": ["x"]}\n', "expected a string that is not blank"),
        (
            json.dumps({"id": "a", "question": "x" * 1_000_000, "answer": ["x"]}),
            "question 'a' has 1,000,000 characters",
        ),
    ],
)
def test_question_files(world: Path, tmp_path: Path, run: Shell, content: str, says: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    command = ("evaluate", world / "job.yaml", "--questions", tmp_path / "q.jsonl", "--out", tmp_path / "out")
    run.fails(2, says, *command)
    assert not (tmp_path / "out").exists()


def test_result_folders_and_comparing(world: Path, tmp_path: Path, run: Shell) -> None:
    command = ("evaluate", world / "job.yaml", "--questions", world / "questions.jsonl", "--out")
    qrels = ("--qrels", world / "qrels.tsv")
    run.fails(2, "is a file; the results need a folder", *command, world / "qrels.tsv")
    run.fails(2, "name their qrels (questions.qrels, --qrels FILE)", *command, tmp_path / "a", "--oracle")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    # The run above stopped before its first row: its folder is free for another one.
    assert run(*command, tmp_path / "a", *qrels, "--oracle")[0] == 0
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["ndcg@10"] == 1.0 and metrics["oracle"] is True
    rows = (tmp_path / "a" / "predictions.jsonl").read_bytes()
    run.fails(2, "holds an evaluation that differs in oracle, questions_sha256", *command, tmp_path / "a")
    assert (tmp_path / "a" / "predictions.jsonl").read_bytes() == rows
    assert run(*command, tmp_path / "b", "--limit", 1)[0] == 0
    code, out, err = run("compare", tmp_path / "a", tmp_path / "b")
    assert (code, out) == (2, "") and "differ in their questions (2 and 1)" in err
    assert run(*command, tmp_path / "a", "--restart")[0] == 0
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    code, _, err = run("verify", world / "bad_input_plugins.py")
    assert code == 2 and "holds nothing that frozenlm writes" in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file"),
        ("garbage\n", "expected: question [0] passage relevance"),
        ("query-id\tcorpus-id\tscore\nzz\tp1\t1\n", "do their ids belong together?"),
        ("query-id\tcorpus-id\tscore\nq1\tp9\t1\n", "1 gold passages are not in"),
    ],
)
def test_qrels(world: Path, tmp_path: Path, run: Shell, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "qrels.tsv").write_text(content)
    command = ("evaluate", world / "job.yaml", "--questions", world / "questions.jsonl", "--out", tmp_path / "out")
    run.fails(2, says, *command, "--qrels", tmp_path / "qrels.tsv", "--oracle")


@pytest.mark.parametrize("command", ["index", "ask", "train"])
def test_a_workspace_that_cannot_be_written(world: Path, run: Shell, command: str) -> None:
    # Below a file: unlike permissions this stops root as well.
    words = [command, world / "train.yaml", *([ASKED] if command == "ask" else [])]
    run.fails(1, "choose a writable folder", *words, "--workspace", world / "qrels.tsv" / "work")


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls for a real Ctrl-C at the command's first write to disk with which `path` is there.

    A thread that watches for the file would come too late on a busy machine. Python's own reaction to Ctrl-C is set,
    whatever the tests were started with.
    """
    before, fsync = signal.signal(signal.SIGINT, signal.default_int_handler), os.fsync

    def interrupt_when(path: Path) -> None:
        def fsync_and_interrupt(handle: int) -> None:
            fsync(handle)
            if path.exists():
                monkeypatch.setattr(os, "fsync", fsync)
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(os, "fsync", fsync_and_interrupt)

    yield interrupt_when
    signal.signal(signal.SIGINT, before)


def test_interrupting_training_and_going_on(world: Path, tmp_path: Path, run: Shell, ctrl_c: Any) -> None:
    whole = ("train", world / "train.yaml", "--workspace", tmp_path / "whole")
    parts = ("train", world / "train.yaml", "--workspace", tmp_path / "parts")
    assert run(*whole)[0] == 0
    ctrl_c(tmp_path / "parts" / "modules" / "p.run" / "state.safetensors")
    code, out, err = run(*parts)
    assert (code, out) == (130, "") and err.endswith("interrupted; run the same command again to resume")
    code, _, err = run(*parts)
    assert code == 0 and "resuming after step" in err
    one, other = (next((tmp_path / name / "modules" / "p").glob("*.safetensors")) for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def test_interrupting_an_evaluation_and_going_on(world: Path, tmp_path: Path, run: Shell, ctrl_c: Any) -> None:
    asked = [{"id": str(n), "question": f"{ASKED} {n}", "answer": ["paris"]} for n in range(120)]
    questions = lines(tmp_path / "many.jsonl", asked)
    command = ("evaluate", world / "job.yaml", "--questions", questions, "--set", "evaluation.chunk=2", "--out")
    ctrl_c(tmp_path / "out" / "predictions.jsonl")
    code, out, err = run(*command, tmp_path / "out")
    assert (code, out) == (130, "") and err.endswith("interrupted; run the same command again to resume")
    code, _, err = run(*command, tmp_path / "out")
    assert code == 0 and "of 120 questions are answered in" in err
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(n) for n in range(120)]
