"""Tasks measured on a toy LM whose right answers are counted beforehand; stopped, torn and compared."""

import io
import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from frozenlm.context_cache import ContextCache
from frozenlm.lm import FrozenLM
from frozenlm.prompts.interface import PromptInput
from pipelines.errors import ConfigError, ShapeError
from pipelines.evaluation.statistics import wilson
from pipelines.evaluation.task_figures import compare_tasks
from pipelines.evaluation.task_table import task_comparison_table, task_table
from pipelines.evaluation.tasks import dev_scores, evaluate_tasks
from pipelines.tasks.task import TaskRow
from tests.pipelines.evaluation.toy_tasks import (
    COLOURS,
    PLACES,
    Encoder,
    Shift,
    Stopped,
    preferred,
    ranked_rows,
    written_rows,
)
from tests.toys import toy_lm


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return toy_lm("gpt2")


@pytest.fixture(scope="module")
def tasks(lm: FrozenLM) -> dict[str, list[TaskRow]]:
    """Right answers of the bare LM: 12 of 20, 9 of 10 (choices of unequal length), 3 of 6 (free text)."""
    return {
        "colour": ranked_rows(lm, "colour", COLOURS, n=20, right=12),
        "place": ranked_rows(lm, "place", PLACES, n=10, right=9),
        "writing": written_rows(lm, "writing", n=6, right=3),
    }


def run(lm: FrozenLM, module: Shift | None, tasks: dict, out: Path, **settings) -> dict:
    encode = settings.pop("encode_row", None) or Encoder(lm)
    settings = {"chunk": 8, "max_new_tokens": 4, "progress": False} | settings
    return evaluate_tasks(lm, module, tasks, out, encode_row=encode, **settings)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def without_times(out: Path) -> list[dict]:
    return [row | {"seconds": None} for row in rows(out)]


def test_figures_by_hand(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    encode = Encoder(lm)
    metrics = run(lm, None, tasks, tmp_path, encode_row=encode, inputs_cut=lambda: encode.cut, identity={"config": "c"})
    scores = {name: (own["n"], own["metric"], own["score"]) for name, own in metrics["tasks"].items()}
    assert scores == {"colour": (20, "accuracy", 0.6), "place": (10, "accuracy", 0.9), "writing": (6, "em", 0.5)}
    assert metrics["n"] == 36
    assert metrics["mean"]["tasks"] == 3 and metrics["mean"]["score"] == pytest.approx((0.6 + 0.9 + 0.5) / 3)
    low, high = metrics["mean"]["ci95"]
    assert 0.4 < low < 2 / 3 < high < 0.85
    assert metrics["tasks"]["colour"]["ci95"] == list(wilson(0.6, 20))
    golds = Counter(row.target for row in tasks["colour"])
    assert metrics["tasks"]["colour"]["majority_accuracy"] == max(golds.values()) / 20
    assert "majority_accuracy" not in metrics["tasks"]["writing"]
    assert metrics["tasks"]["writing"]["figures"]["f1"] >= 0.5
    assert (metrics["lm_weights_changed"], metrics["lm_fingerprint"]) == (0, lm.fingerprint)
    assert (metrics["inputs_cut"], metrics["encoder_inputs_cut"], metrics["encoder_weights_changed"]) == (0, 0, None)
    assert metrics["answers_at_length_limit"] == sum(row.get("stopped") == "length" for row in rows(tmp_path))
    assert (metrics["module"], metrics["config"], metrics["normalize"]) == (None, "c", "none")
    assert metrics["seconds"] == pytest.approx(sum(row["seconds"] for row in rows(tmp_path)))
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checksums.json", "metrics.json", "predictions.jsonl", "run.json",
    ]  # fmt: skip


def test_macro_f1_of_the_rows(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    metrics = run(lm, None, {"colour": tasks["colour"]}, tmp_path, metrics={"colour": "macro_f1"})
    table = Counter((row["gold"], row["choice"]) for row in rows(tmp_path))
    each = []
    for k in range(3):
        both = sum(n * ((g == k) + (p == k)) for (g, p), n in table.items())
        each += [2 * table[k, k] / both] if both else []
    found = metrics["tasks"]["colour"]
    assert (found["metric"], found["figures"]["accuracy"]) == ("macro_f1", 0.6)
    assert found["score"] == pytest.approx(sum(each) / len(each))


def test_records(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    run(lm, None, tasks, tmp_path)
    found = rows(tmp_path)
    assert [row["id"] for row in found] == [row.id for own in tasks.values() for row in own]
    for row, asked in zip(found[20:30], tasks["place"], strict=True):
        assert row["task"] == "place" and row["choices"] == list(PLACES)
        assert row["choice"] == preferred(lm, asked.text, PLACES) == row["scores"].index(max(row["scores"]))
        assert row["prediction"] == PLACES[row["choice"]] and PLACES[row["gold"]] == asked.target
    right = [row["prediction"] + "." in row["references"] for row in found[30:]]
    assert right == [True] * 3 + [False] * 3


def test_normalisation_reaches_the_ranking(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    only = {"place": tasks["place"]}
    run(lm, None, only, tmp_path / "sums")
    run(lm, None, only, tmp_path / "means", normalize="tokens")
    for sums, means in zip(rows(tmp_path / "sums"), rows(tmp_path / "means"), strict=True):
        assert means["scores"] == pytest.approx([sums["scores"][0], sums["scores"][1] / 4])


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_with_a_prompt_and_other_lms(name: str, tmp_path: Path) -> None:
    lm, module = toy_lm(name), Shift()
    made = {
        "colour": ranked_rows(lm, "colour", COLOURS, n=10, right=7, module=module),
        "place": ranked_rows(lm, "place", PLACES, n=5, right=5, module=module),
        "writing": written_rows(lm, "writing", n=4, right=3, module=module),
    }
    metrics = run(lm, module.train(), made, tmp_path)
    assert {task: own["score"] for task, own in metrics["tasks"].items()} == {
        "colour": 0.7, "place": 1.0, "writing": 0.75,
    }  # fmt: skip
    assert metrics["module"]["class"] == "Shift" and len(metrics["module"]["sha256"]) == 64
    assert module.training and module.modes and not any(module.modes)  # in eval mode while it is measured


def test_dev_scores_are_those_of_the_folder(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    module = Shift()
    metrics = run(lm, module, tasks, tmp_path)
    scores = dev_scores(lm, module, tasks, encode_row=Encoder(lm), max_new_tokens=4)
    assert scores == {task: own["score"] for task, own in metrics["tasks"].items()}
    cache = ContextCache(lm)
    for _ in range(2):
        assert dev_scores(lm, module, tasks, encode_row=Encoder(lm), max_new_tokens=4, memory_cache=cache) == scores
    assert cache.counts.found >= 30  # the second time no ranked context is read


def test_goes_on_where_it_stopped(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    whole = run(lm, Shift(), tasks, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(lm, Shift(calls_left=3), tasks, tmp_path / "part")
    assert not (tmp_path / "part" / "metrics.json").exists() and 8 <= len(rows(tmp_path / "part")) < 36
    done, said = len(rows(tmp_path / "part")), []
    again = run(lm, Shift(), tasks, tmp_path / "part", log=said.append)
    assert said == [f"{done} of 36 rows are answered in {tmp_path / 'part'} already"]
    assert without_times(tmp_path / "part") == without_times(tmp_path / "whole")
    times = ("seconds", "rows_per_second")
    assert {k: v for k, v in again.items() if k not in times} == {k: v for k, v in whole.items() if k not in times}


def test_files_torn_anywhere_are_mended(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    run(lm, Shift(), tasks, tmp_path / "whole")
    wanted, out, rng = without_times(tmp_path / "whole"), tmp_path / "torn", random.Random(0)
    for attempt in range(8):
        with pytest.raises(Stopped):
            run(lm, Shift(calls_left=1 + attempt % 3), tasks, out, restart=True)
        if (path := out / "predictions.jsonl").exists():
            os.truncate(path, rng.randrange(path.stat().st_size + 1))
        run(lm, Shift(), tasks, out)
        assert without_times(out) == wanted


def test_a_finished_run_is_not_run_again(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    metrics = run(lm, Shift(), tasks, tmp_path)
    idle = Shift(calls_left=0)
    assert run(lm, idle, tasks, tmp_path) == metrics
    other = run(lm, idle, tasks, tmp_path, metrics={"colour": "matthews", "writing": "f1"})
    assert (other["tasks"]["colour"]["metric"], other["tasks"]["writing"]["metric"]) == ("matthews", "f1")
    assert other["tasks"]["colour"]["figures"]["accuracy"] == metrics["tasks"]["colour"]["score"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"module": Shift(0.4)}, "module"),
        ({"module": None}, "module"),
        ({"normalize": "tokens"}, "normalize"),
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"stop": "."}, "stop"),
        ({"identity": {"config": "other"}}, "config"),
        ({"word": "who"}, "inputs_sha256"),
        ({"swap": True}, "examples_sha256, inputs_sha256"),
    ],
)
def test_records_of_two_evaluations_are_never_mixed(
    lm: FrozenLM, tasks: dict, tmp_path: Path, change: dict, named: str
) -> None:
    with pytest.raises(Stopped):
        run(lm, Shift(calls_left=2), tasks, tmp_path)
    change = dict(change)
    if word := change.pop("word", None):
        tasks = tasks | {"place": [replace(row, text=f"{word} {row.text}") for row in tasks["place"]]}
    if change.pop("swap", False):
        tasks = tasks | {"place": tasks["place"][::-1]}
    with pytest.raises(ConfigError, match=f"differs in {named};"):
        run(lm, change.pop("module", Shift()), tasks, tmp_path, **change)


def test_what_is_cut_is_counted(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    long = [replace(row, text=row.text + " the" * (i % 3) * 4) for i, row in enumerate(tasks["colour"])]
    encode = Encoder(lm)
    metrics = run(lm, None, {"colour": long}, tmp_path, encode_row=encode, inputs_cut=lambda: encode.cut)
    assert metrics["inputs_cut"] == sum(4 + 4 * (i % 3) > 8 for i in range(20)) == 6
    assert len(encode.seen) == 20  # each row is encoded once


class Cutting:
    """A frozen encoder, and one weight that may change."""

    fingerprint = "f" * 64

    class verification:
        changed, total = 0, 3

    def verify(self):
        return self.verification


def test_what_the_frozen_encoder_cuts_is_counted_over_a_stop(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    class Generator(Shift):
        def __init__(self, calls_left: int = -1) -> None:
            super().__init__(calls_left=calls_left)
            self.encoder = Cutting()

        def too_long(self, inputs):
            return ["king" in one.text for one in inputs]

    made = {"colour": tasks["colour"]}
    kings = sum("king" in row.text for row in tasks["colour"])
    with pytest.raises(Stopped):
        run(lm, Generator(calls_left=2), made, tmp_path)
    metrics = run(lm, Generator(), made, tmp_path)
    assert metrics["encoder_inputs_cut"] == kings > 0
    assert (metrics["encoder_weights_changed"], metrics["module"]["encoder_fingerprint"]) == (0, "f" * 64)


def test_tasks_that_were_not_trained_on_have_a_mean_of_their_own(lm: FrozenLM, tasks: dict, tmp_path: Path) -> None:
    whole = run(lm, None, tasks, tmp_path)
    assert whole["unseen"] == [] and not {"mean_seen", "mean_unseen"} & set(whole)
    metrics = run(lm, None, tasks, tmp_path, unseen=["place"])
    scores = {name: one["score"] for name, one in metrics["tasks"].items()}
    assert metrics["mean"] == whole["mean"] and metrics["unseen"] == ["place"]
    assert (metrics["mean_unseen"]["tasks"], metrics["mean_unseen"]["score"]) == (1, scores["place"])
    assert metrics["mean_seen"]["score"] == pytest.approx((scores["colour"] + scores["writing"]) / 2)
    low, high = metrics["mean_unseen"]["ci95"]
    assert low <= scores["place"] <= high
    text = shown(task_table(metrics))
    assert "place (not trained on)" in text and "mean of those trained on" in text and "mean of the others" in text
    assert run(lm, None, {"place": tasks["place"]}, tmp_path / "b", unseen=["place"]).keys() & {"mean_unseen"} == set()


def test_choices_that_differ_by_row(lm: FrozenLM, tmp_path: Path) -> None:
    some = ranked_rows(lm, "a", COLOURS, n=4, right=4)[:2] + ranked_rows(lm, "b", PLACES, n=4, right=2)[2:]
    metrics = run(lm, None, {"mixed": some}, tmp_path)["tasks"]["mixed"]
    assert (metrics["score"], metrics["majority_accuracy"], list(metrics["figures"])) == (0.5, None, ["accuracy"])
    with pytest.raises(ConfigError, match="matthews goes by class"):
        run(lm, None, {"mixed": some}, tmp_path / "b", metrics={"mixed": "matthews"})


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "nothing to evaluate on: \\['t'\\]"),
        ([TaskRow("a", "t", "x", "red", COLOURS)] * 2, {}, "id 'a' is there twice"),
        ([TaskRow("a", "t", "x", "black", COLOURS)], {}, "target 'black' is not among its choices"),
        ([TaskRow("a", "t", "x", " ")], {}, "blank reference"),
        ([TaskRow("a", "t", "x", "y")], {"metrics": {"t": "accuracy"}}, "accuracy needs choices, and task 't'"),
        ([TaskRow("a", "t", "x", "y")], {"metrics": {"t": "meteor"}}, "unknown metric 'meteor'"),
        ([TaskRow("a", "t", "x", "y")], {"metrics": {"u": "em"}}, "given for \\['u'\\]"),
        ([TaskRow("a", "t", "x", "y")], {"chunk": 0}, "chunk is 0"),
    ],
)
def test_what_cannot_be_measured(lm: FrozenLM, tmp_path: Path, rows: list, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(lm, None, {"t": rows}, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_row_past_the_window_is_named(lm: FrozenLM, tmp_path: Path) -> None:
    def encode(row):
        return [5] * 200, [[6], [7], [8]], Encoder(lm)(row)[2]

    with pytest.raises(ShapeError, match=r"rows 'a' to 'a': row 0 takes 200 tokens"):
        run(lm, None, {"t": [TaskRow("a", "t", "cat", "red", COLOURS)]}, tmp_path, encode_row=encode)
    with pytest.raises(ShapeError, match="'a' has 3 choices, but 0 were encoded"):
        row = TaskRow("a", "t", "cat", "red", COLOURS)
        run(lm, None, {"t": [row]}, tmp_path, encode_row=lambda row: ([5], [], PromptInput()), restart=True)


@pytest.fixture
def two(lm: FrozenLM, tasks: dict, tmp_path: Path) -> tuple[Path, Path]:
    run(lm, None, tasks, tmp_path / "a")
    run(lm, Shift(2.0), tasks, tmp_path / "b")
    return tmp_path / "a", tmp_path / "b"


def test_compare_by_hand(two: tuple[Path, Path]) -> None:
    found = compare_tasks(*two)
    a, b = ({r["id"]: r.get("choice") == r.get("gold") for r in rows(out)} for out in two)
    colour = found["tasks"]["colour"]
    assert colour["only_a"] == sum(a[k] and not b[k] for k in a if k.startswith("colour"))
    assert colour["only_b"] == sum(b[k] and not a[k] for k in a if k.startswith("colour"))
    assert colour["a"] == 0.6 and colour["difference"] == pytest.approx((colour["only_b"] - colour["only_a"]) / 20)
    mean = sum(one["difference"] for one in found["tasks"].values()) / 3
    assert found["mean"]["difference"] == pytest.approx(mean) and found["n"] == 36
    assert found["mean"]["low"] <= mean <= found["mean"]["high"]
    assert 0 < found["mean"]["p_bootstrap"] <= 1
    json.dumps(found)


def test_the_means_interval_is_narrower_than_a_tasks(lm: FrozenLM, tmp_path: Path) -> None:
    """Sixteen tasks of equal spread: the interval of their mean is a quarter of one task's."""
    many = {f"t{k}": ranked_rows(lm, f"t{k}", COLOURS, n=24, right=12) for k in range(16)}
    metrics = run(lm, None, many, tmp_path, chunk=400)
    low, high = metrics["mean"]["ci95"]
    one_low, one_high = wilson(0.5, 24)
    assert (high - low) == pytest.approx((one_high - one_low) / 4, rel=0.15)


def test_a_run_is_as_good_as_itself(two: tuple[Path, Path]) -> None:
    found = compare_tasks(two[0], two[0])
    for one in (*found["tasks"].values(), found["mean"]):
        assert (one["difference"], one["low"], one["high"], one["p_bootstrap"]) == (0.0, 0.0, 0.0, 1.0)


def test_what_cannot_be_compared(lm: FrozenLM, tasks: dict, two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no metrics\.json"):
        compare_tasks(two[0], tmp_path / "nothing")
    run(lm, None, {"place": tasks["place"]}, tmp_path / "other")
    with pytest.raises(ConfigError, match="different examples"):
        compare_tasks(two[0], tmp_path / "other")
    run(lm, None, tasks, two[1], metrics={"writing": "f1"}, restart=True)
    with pytest.raises(ConfigError, match="other metrics"):
        compare_tasks(*two)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no evaluation of tasks"):
        compare_tasks(two[0], tmp_path / "else")


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_tables(two: tuple[Path, Path]) -> None:
    metrics = json.loads((two[0] / "metrics.json").read_text())
    text = shown(task_table(metrics))
    low, high = (100 * bound for bound in wilson(0.6, 20))
    assert f"60.0 [{low:.1f}, {high:.1f}]" in text and "LM weights changed: 0 of" in text
    assert "macro-F1" in text and "EM" in text and "66.7 [" in text
    text = shown(task_comparison_table(compare_tasks(*two)))
    assert "colour" in text and "mean" in text and " / " in text
