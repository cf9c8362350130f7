"""Two runs over the same questions, and the tables made of them."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from pipelines.errors import ConfigError
from pipelines.evaluation.compare import compare
from pipelines.evaluation.run import evaluate
from pipelines.report import comparison_table, metrics_table
from tests.pipelines.evaluation.toy_pipeline import ToyPipeline, questions


class HalfRight(ToyPipeline):
    """Wrong on odd things: "who made thing 3 ?" is answered with "?"."""

    def answer(self, texts, hits=None):
        answers = super().answer(texts, hits)
        return [replace(a, text="?") if int(a.question.split()[3]) % 2 else a for a in answers]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a", tmp_path / "b"
    evaluate(HalfRight(name="half"), questions(), a, recall_at=[1, 5], progress=False)
    evaluate(ToyPipeline(name="whole"), questions(), b, recall_at=[1, 20], progress=False)
    return a, b


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_compare(two: tuple[Path, Path]) -> None:
    result = compare(*two)
    em = result["scores"]["em"]
    # 32 of 40 can be answered; of these, 16 have even numbers.
    assert (em["a"], em["b"], em["difference"]) == (0.4, 0.8, pytest.approx(0.4))
    assert (em["only_a"], em["only_b"]) == (0, 16)
    assert em["p_mcnemar"] == pytest.approx(2 / 2**16)
    assert 0.2 < em["low"] < 0.4 < em["high"] < 0.6
    assert em["p_bootstrap"] < 0.01
    assert "recall_at.1" in result["scores"] and "recall_at.5" not in result["scores"]
    assert result["scores"]["recall_at.1"]["p_mcnemar"] == 1.0
    assert "p_mcnemar" not in result["scores"]["f1"]
    assert result["n"] == 40
    json.dumps(result)


def test_a_run_is_as_good_as_itself(two: tuple[Path, Path]) -> None:
    scores = compare(two[0], two[0])["scores"]
    assert all(score["difference"] == 0.0 and score["p_bootstrap"] == 1.0 for score in scores.values())


def test_other_questions_matchers_and_unfinished_folders(two: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(ToyPipeline(), questions(39), tmp_path / "c", progress=False)
    with pytest.raises(ConfigError, match="differ in their questions"):
        compare(two[0], tmp_path / "c")
    evaluate(ToyPipeline(), questions(), tmp_path / "d", matcher="substring", progress=False)
    with pytest.raises(ConfigError, match="differ in their matcher"):
        compare(two[0], tmp_path / "d")
    with pytest.raises(ConfigError, match=r"has no metrics\.json"):
        compare(two[0], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_rows_that_do_not_match(two: tuple[Path, Path]) -> None:
    path = two[1] / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ConfigError, match="row 1: 'q0' and 'q1'"):
        compare(*two)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(ConfigError, match="differ in their number"):
        compare(*two)


def test_tables(two: tuple[Path, Path]) -> None:
    results = {folder.name: json.loads((folder / "metrics.json").read_text()) for folder in two}
    text = shown(metrics_table(results))
    assert "40.0 [26.3, 55.4]" in text  # Wilson's interval of 16 in 40
    assert "recall@20" in text and "EM / recall" in text
    text = shown(comparison_table(compare(*two)))
    assert "0 / 16" in text and "+40.0" in text and "< 0.0001" in text
