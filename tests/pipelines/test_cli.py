"""The command line: what it prints, where, with which exit code; and that nothing expected ever shows a traceback."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli_answer, stages
from pipelines.cli import main
from retrievers.errors import IndexMismatchError
from tests.documents import CHECKOUT, environment
from tests.patience import PATIENCE
from tests.toys import toy_folder

PASSAGES = [
    ("p1", "France", "paris is the capital of france"),
    ("p2", "Germany", "berlin is a city in germany"),
    ("p3", "Egypt", "the nile is a river in egypt"),
]
QUESTIONS = [("q1", "what is the capital of france", "paris"), ("q2", "which river is in egypt", "the nile")]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen reader over three passages with a toy LM; its indexes are built on first use."""
    folder = tmp_path_factory.mktemp("job")
    toy_folder("llama", folder)
    passages = [{"id": i, "title": t, "text": x} for i, t, x in PASSAGES]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    questions = [{"id": i, "question": q, "answer": [a]} for i, q, a in QUESTIONS]
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (folder / "job.yaml").write_text(
        f"kind: frozen_reader\nworkspace: {folder}/work\ncorpus: {{path: corpus.jsonl, format: jsonl}}\n"
        "retriever: {kind: bm25, stemmer: null, stopwords: none}\nretrieve_k: 3\nbuild_index: on_first_use\n"
        "lm: {model: ./llama}\npacking: {answer_reserve: 8}\ngeneration: {max_new_tokens: 6}\n"
        "evaluation: {recall_at: [1, 2]}\n"
    )
    return folder / "job.yaml"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, captured.out, captured.err


def test_index_then_nothing_to_do(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "index", job, "--workspace", tmp_path / "w")
    assert code == 0 and Path(out.strip()).parent == tmp_path / "w" / "index"
    again, same, err = run(capsys, "index", job, "--workspace", tmp_path / "w")
    assert (again, same) == (0, out) and "is there already" in err
    assert run(capsys, "index", job, "--workspace", tmp_path / "w", "--rebuild", "--quiet") == (0, out, "")


def test_ask_shows_the_answer_and_its_sources(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ask", job, "what is the capital of france")
    assert code == 0
    assert " * France [p1]" in out and "paris is the capital of france" in out and "log-probability -" in out
    assert "= read by the LM: 3 of 3 passages" in out


def test_ask_as_json_and_fewer_sources(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ask", job, "what is the capital of france", "--json", "--k", 1)
    record = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert [p["id"] for p in record["passages"]] == ["p1"] and record["passages"][0]["in_context"] is True
    assert isinstance(record["answer"], str) and record["score"] < 0 and set(record["timings"]) >= {"retrieve", "read"}


def test_ask_reads_questions_from_standard_input(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(q for _, q, _ in QUESTIONS) + "\n\n"))
    code, out, _ = run(capsys, "ask", job, "-", "--json", "-q")
    assert code == 0 and [json.loads(line)["question"] for line in out.splitlines()] == [q for _, q, _ in QUESTIONS]


@pytest.mark.parametrize(
    ("question", "stdin", "says"),
    [
        ("", "", "question 0 is empty"),
        ("   \n", "", "question 0 is empty"),
        (
            "x" * (stages.MAX_QUESTION_CHARACTERS + 1),
            "",
            "question 0 has 100,001 characters, at most 100,000 are taken",
        ),
        ("-", "", "there is no question on standard input"),
        ("-", "\n \n", "there is no question on standard input"),
    ],
)
def test_questions_that_cannot_be_asked(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, question: str, stdin: str, says: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    code, out, err = run(capsys, "ask", job, question)
    assert (code, out) == (2, "") and says in err and len(err) < 300


def test_evaluate_then_again_then_compare_then_verify(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, out_a, out_b = job.parent / "questions.jsonl", tmp_path / "a", tmp_path / "b"
    code, out, _ = run(capsys, "evaluate", job, "--questions", questions, "--out", out_a, "--json", "-q")
    metrics = json.loads(out)
    assert code == 0 and metrics == json.loads((out_a / "metrics.json").read_text())
    assert metrics["n"] == 2 and metrics["lm_weights_changed"] == 0 and metrics["recall_at"] == {"1": 1.0, "2": 1.0}
    code, out, err = run(capsys, "evaluate", job, "--questions", questions, "--out", out_a)
    assert code == 0 and "recall_at.1" in out and "is finished" in err
    code, _, err = run(capsys, "evaluate", job, "--questions", questions, "--out", out_a, "--limit", 1)
    assert code == 2 and "holds an evaluation that differs in" in err
    restarted = run(capsys, "evaluate", job, "--questions", questions, "--out", out_a, "--limit", 1, "--restart", "-q")
    assert restarted[0] == 0
    assert run(capsys, "evaluate", job, "--questions", questions, "--out", out_b, "--limit", 1, "-q")[0] == 0
    code, out, _ = run(capsys, "compare", out_a, out_b)
    assert code == 0 and "1 questions" in out and "+0.0 " in out
    assert json.loads(run(capsys, "compare", out_a, out_b, "--json")[1])["n"] == 1
    code, out, _ = run(capsys, "verify", tmp_path)
    assert code == 0 and out.endswith(" checked, 0 damaged\n")
    (out_b / "predictions.jsonl").write_text("{}\n")
    code, out, _ = run(capsys, "verify", tmp_path)
    assert code == 1 and "predictions.jsonl  (evaluation)  DAMAGED" in out and "1 damaged" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["evaluate", "JOB", "--out", "OUT"], 2, "no questions: give --questions FILE"),
        (["evaluate", "JOB", "--out", "OUT", "--questions", "nowhere.jsonl"], 2, "nowhere.jsonl does not exist"),
        (["evaluate", "JOB", "--out", "OUT", "--questions", "q.jsonl", "--format", "xml"], 2, "--format 'xml': Input"),
        (["evaluate", "JOB", "--out", "OUT", "--limit", "0"], 2, "Invalid value for '--limit'"),
        (["evaluate", "JOB"], 2, "Missing option '--out'"),
        (["ask", "nowhere.yaml", "q"], 2, "no config file 'nowhere.yaml'"),
        (["ask", "JOB"], 2, "Missing argument"),
        (["aks", "JOB", "q"], 2, "No such command 'aks'"),
        (["ask", "JOB", "q", "--set", "lm.modl=x"], 2, "--set lm.modl: lm.modl: unknown key; did you mean 'model'?"),
        (["ask", "JOB", "q", "--set", "lm.model=./no_such_lm"], 1, "no_such_lm"),
        (
            ["ask", "JOB", "q", "--set", "retriever={kind: bn25}"],
            2,
            "there is no retriever 'bn25'; did you mean 'bm25'",
        ),
        (
            ["ask", "JOB", "q", "--set", "retriever={kind: 'os:getcwd'}"],
            2,
            "pass allow_import=True (Python) or --allow",
        ),
        (["ask", "JOB", "q", "--set", "corpus.path=nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["index", "closed_book.yaml"], 2, "there is nothing to build"),
        (["train", "JOB"], 2, "there is nothing to train"),
        (["compare", "OUT", "OUT"], 2, "has no metrics.json"),
        (["verify", "nowhere"], 2, "there is nothing at nowhere"),
    ],
)
def test_wrong_use_is_one_message(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    words = [str(job) if word == "JOB" else str(tmp_path) if word == "OUT" else word for word in arguments]
    found, out, err = run(capsys, *words)
    assert found == code and says in " ".join(err.split()) and out == ""


def test_config_check_names_every_fault_of_every_file(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("kind: closed_book\nlm: {modl: x}\nseed: a\n")
    code, out, err = run(capsys, "config", "check", job, wrong, "closed_book.yaml")
    assert code == 2 and out.count(": OK") == 2
    for fault in (f"{wrong}:2: lm.modl: unknown key", f"{wrong}:2: lm.model: missing", f"{wrong}:3: seed: "):
        assert fault in err
    assert run(capsys, "config", "check", job)[0] == 0


def test_config_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "schema")
    assert code == 0 and json.loads(out)["title"] == "frozenlm config"


def test_a_plug_in_from_the_current_folder_where_allowed(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from retrievers.types import Hit\n"
        "class Mine:\n    def retrieve(self, queries, k):\n"
        "        return [[Hit('x', 1.0, 'mine', 'Mine')] for _ in queries]\n"
        "class Bad:\n    def retrieve(self, queries, k):\n        raise ValueError('server is down')\n"
    )
    (tmp_path / "cli_test_search.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    chosen = "retriever={kind: 'cli_test_search:Mine'}"
    assert "Mine [x]" in run(capsys, "ask", job, "who", "--set", chosen, "--allow-import")[1]
    code, _, err = run(capsys, "ask", job, "who", "--set", chosen.replace("Mine", "Bad"), "--allow-import")
    assert code == 1 and "cli_test_search.Bad: retrieve raised ValueError: server is down" in err


def test_a_question_that_looks_like_an_option(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "ask", job, "--json", "--", "--debug")[0] == 0


def _fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(cli_answer, "load", load)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (IndexMismatchError("the index is damaged"), 1, "error: the index is damaged"),
        (OSError(28, "No space left on device", "/data/x"), 1, "error: No space left on device: /data/x; make room"),
        (PermissionError(13, "Permission denied", "/data/x"), 1, "error: Permission denied: /data/x"),
        (MemoryError(), 1, "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), 1, "error: out of memory"),
        (KeyboardInterrupt(), 130, "error: interrupted; run the same command again to resume"),
        (
            ZeroDivisionError("by zero"),
            70,
            "error: this is a bug of frozenlm's, please report it: ZeroDivisionError: by",
        ),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    _fails_with(monkeypatch, error)
    found, out, err = run(capsys, "index", "x.yaml")
    assert (found, out) == (code, "") and err.startswith(says)


def test_debug_anywhere_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fails_with(monkeypatch, ZeroDivisionError("by zero"))
    for words in (["--debug", "index", "x.yaml"], ["index", "x.yaml", "--debug"]):
        assert main(words) == 70
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_messages_are_not_read_as_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _fails_with(monkeypatch, IndexMismatchError("[bold]x[/bold] [/wrong]"))
    assert run(capsys, "index", "x.yaml")[2] == "error: [bold]x[/bold] [/wrong]\n"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m pipelines.cli config schema | head -c 10'
    done = subprocess.run(
        ["bash", "-c", command], cwd=CHECKOUT, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.stderr == "" and len(done.stdout) == 10


def test_interrupting_a_running_command(job: Path, tmp_path: Path) -> None:
    """A real SIGINT while it waits for the next question, with the first ones answered."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "ask", str(job), "-", "--json"],
        cwd=CHECKOUT,
        env=environment(tmp_path, PYTHONUNBUFFERED=""),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell were told to ignore Ctrl-C, and so would the command be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("what is the capital of france\n" * (cli_answer.ASK_CHUNK + 1))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["answer"] is not None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip().endswith("interrupted; run the same command again to resume") and "Traceback" not in err
