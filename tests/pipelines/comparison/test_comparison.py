"""Methods on tasks: every run once, resumed after a kill, figures that can be computed by hand, a report to look at."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from pipelines.comparison.figures import curves, figures, transfer
from pipelines.comparison.results import read_results
from pipelines.comparison.runs import compare_methods, part_of, runs
from pipelines.comparison.show import write_report
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from tests.pipelines.toy_multitask import make_world, settings


def comparison(world: Path, **changes: Any) -> dict[str, Any]:
    base = settings(world)
    kept = {key: base[key] for key in ("lm", "tasks", "input", "generation", "training", "workspace")}
    methods = [
        {"prompt": {"kind": "soft_prompt", "name": "prompt", "length": 3}, "learning_rates": [0.05, 0.5]},
        {"prompt": {"kind": "soft_prompt", "name": "longer", "length": 5}, "learning_rates": [0.05], "steps": 2},
    ]
    return {"kind": "method_comparison", **kept, "methods": methods, "reference": "longer", "seeds": 2} | changes


def test_every_method_on_every_task_with_every_seed(tmp_path: Path) -> None:
    config = load_config(comparison(make_world(tmp_path), transfer=True))
    results = compare_methods(config, tmp_path / "out")
    assert [r["name"] for r in results] == [
        *("zero_shot/colours", "zero_shot/places"),
        *("prompt/colours/0", "longer/colours/0", "prompt/places/0", "longer/places/0"),
        *("prompt/colours/1", "longer/colours/1", "prompt/places/1", "longer/places/1"),
    ]
    by_name = {r["name"]: r for r in results}
    first = by_name["prompt/colours/0"]
    assert set(first["dev_by_learning_rate"]) == {"0.05", "0.5"}
    assert first["best_score"] == max(first["dev_by_learning_rate"].values())
    assert set(by_name["prompt/places/0"]["dev_by_learning_rate"]) == {"0.05", "0.5"}
    for task in ("colours", "places"):
        again, chosen = by_name[f"prompt/{task}/1"], by_name[f"prompt/{task}/0"]["learning_rate"]
        assert set(again["dev_by_learning_rate"]) == {f"{chosen:g}"}
    kept = {path.suffix for path in (tmp_path / "out" / "work" / "modules").glob("*.run/*")}
    assert kept == {".json"}  # what a training goes on from is gone
    assert first["trained_parameters"] == 3 * 32 and by_name["longer/places/1"]["trained_parameters"] == 5 * 32
    assert by_name["longer/places/0"]["steps"] == 2 and first["steps"] == 4
    assert set(first["transfer"]) == {"places"} and first["lm_weights_changed"] == 0 and first["saved_bytes"] > 0
    assert compare_methods(config, tmp_path / "out") == results
    files = write_report(results, tmp_path / "out", reference="longer", title="toy <comparison>")
    assert [path.name for path in files] == ["scores.png", "curves.png", "comparison.html"]
    page = files[2].read_text()
    assert page.count("data:image/png;base64,") == 2 and "toy &lt;comparison&gt;" in page and "http" not in page


def test_a_killed_comparison_goes_on_and_a_torn_line_is_made_again(tmp_path: Path) -> None:
    config = load_config(comparison(make_world(tmp_path), seeds=1))
    whole = compare_methods(config, tmp_path / "whole")
    compare_methods(config, tmp_path / "cut")
    file = tmp_path / "cut" / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    again = compare_methods(config, tmp_path / "cut")
    assert [(r["name"], r["score"]) for r in again] == [(r["name"], r["score"]) for r in whole]


def test_a_rate_that_diverges_is_an_answer_and_all_of_them_an_error(tmp_path: Path) -> None:
    prompt = {"kind": "soft_prompt", "name": "prompt", "length": 3}
    world = make_world(tmp_path)
    one = {"methods": [{"prompt": prompt, "learning_rates": [0.05, 1e30]}], "reference": None, "seeds": 1}
    result = compare_methods(load_config(comparison(world, **one)), tmp_path / "out")[-1]
    assert result["learning_rate"] == 0.05 and result["dev_by_learning_rate"]["1e+30"] is None
    all_of_them = one | {"methods": [{"prompt": prompt, "learning_rates": [1e30]}]}
    with pytest.raises(ConfigError, match=r"no learning rate of .* keeps the loss finite"):
        compare_methods(load_config(comparison(world, **all_of_them)), tmp_path / "other")


def test_parts_share_the_methods(tmp_path: Path) -> None:
    config = load_config(comparison(make_world(tmp_path), seeds=1))
    compare_methods(config, tmp_path / "out", part=(1, 2))
    assert {r["method"] for r in read_results(tmp_path / "out")} == {"longer"}
    assert len(compare_methods(config, tmp_path / "out", part=(0, 2))) == 6
    with pytest.raises(ConfigError, match="there are 2 methods"):
        compare_methods(config, tmp_path / "out", part=(2, 3))


def test_around_an_encoder(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    base = comparison(world)
    base |= {"lm": None, "encoder": {"model": str(world / "encoder")}, "tasks": base["tasks"][:1], "reference": None}
    base["methods"] = [
        {"head": "probe", "learning_rates": [0.05]},
        {"delta": {"kind": "bitfit", "name": "bitfit"}, "learning_rates": [0.05]},
    ]
    config = load_config(base)
    results = compare_methods(config, tmp_path / "out")
    assert [r["name"] for r in results] == [f"{m}/colours/{seed}" for seed in (0, 1) for m in ("probe", "bitfit")]
    assert results[0]["trained_parameters"] == 2 * 24 + 2 and results[1]["lm_weights_changed"] == 0
    assert len(write_report(results, tmp_path / "out", reference=None, title="toy")) == 3
    for wrong in ({"transfer": True}, {"pairs": {"nothing": "{text}"}}, {"methods": comparison(world)["methods"]}):
        with pytest.raises(ConfigError, match=r"transfer needs an lm|names of tasks|does not fit"):
            load_config(base | wrong)


def result(method: str, task: str, seed: int, score: float, **more: Any) -> dict[str, Any]:
    about = {"name": f"{method}/{task}/{seed}", "method": method, "kind": method, "task": task, "seed": seed}
    about |= {"score": score, "ci95": [score - 0.1, score + 0.1], "trained_parameters": 10, "lm_parameters": 1000}
    about |= {"learning_rate": 0.1}
    return about | more


def test_figures_by_hand() -> None:
    results = [
        *(result("a", "x", 0, 0.5), result("a", "x", 1, 0.7), result("a", "y", 0, 0.1), result("a", "y", 1, 0.3)),
        *(result("full", "x", 0, 0.8), result("full", "y", 0, 0.4)),
        result("half", "x", 0, 1.0),
    ]
    a, full, half = figures(results, "full")
    assert a.mean == pytest.approx((0.6 + 0.2) / 2) and full.mean == pytest.approx(0.6)
    assert a.of_reference == pytest.approx(0.4 / 0.6) and a.share == 0.01
    assert a.spread == pytest.approx((0.5 - 0.3) / 2**0.5)  # the seeds' means are 0.3 and 0.5
    # Rows: 0.1 on each of two tasks. Seeds: 1.96 standard deviations of a mean over two.
    width = ((0.1**2 + 0.1**2) / 2**2 + (1.96 * a.spread) ** 2 / 2) ** 0.5
    assert a.interval == pytest.approx((0.4 - width, 0.4 + width)) and half.interval is None
    assert half.mean is None and half.of_reference is None and full.spread is None


def test_curves_and_transfer() -> None:
    history = [{"step": 2, "score": 0.2}, {"step": 3}, {"step": 4, "score": 0.6}]
    other = [{"step": 2, "score": 0.4}]
    results = [
        result("a", "x", 0, 0.5, history=history, transfer={"y": 0.1}),
        result("a", "x", 1, 0.7, history=other, transfer={"y": 0.3}),
    ]
    assert curves(results, "a") == pytest.approx({2: 0.3, 4: 0.6})
    second = [{"step": 2, "score": 0.9}]  # one seed, and one step so far
    assert curves([*results, result("a", "y", 0, 0.5, history=second)], "a") == pytest.approx({2: (0.3 + 0.9) / 2})
    assert curves([*results, result("b", "y", 0, 0.5, history=second)], "a") == {}  # "a" has not been run on "y"
    assert transfer(results, "a")["x"] == pytest.approx({"x": 0.6, "y": 0.2})


def test_bad_comparisons(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    twice = comparison(world)
    twice["methods"][1]["prompt"]["name"] = "prompt"
    with pytest.raises(ConfigError, match="two methods are called 'prompt'"):
        load_config(twice)
    with pytest.raises(ConfigError, match="reference is 'nothing'"):
        load_config(comparison(world, reference="nothing"))
    with pytest.raises(ConfigError, match="either a prompt, a delta"):
        load_config(comparison(world, methods=[{"learning_rates": [0.1]}]))
    config = load_config(comparison(world, seeds=1))
    compare_methods(config, tmp_path / "out")
    other = load_config(comparison(world, seeds=1, input={"max_tokens": 20, "keep_end": 4, "answer_tokens": 6}))
    with pytest.raises(ConfigError, match="holds a comparison with another LM, input, training or evaluation"):
        compare_methods(other, tmp_path / "out")
    (tmp_path / "out" / "results.jsonl").write_bytes(b"nonsense\n")
    with pytest.raises(ConfigError, match="damaged line"):
        compare_methods(config, tmp_path / "out")
    for wrong in ("2/2", "1", "a/b", "", "0/" + "9" * 5000):
        with pytest.raises(ConfigError, match="expected I/N"):
            part_of(wrong)
    assert [run.name for run in runs(config)][:2] == ["prompt/colours/0", "longer/colours/0"]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps(comparison(make_world(tmp_path), seeds=1)))
    assert cli.main(["compare-methods", str(file), "--list"]) == 0
    assert capsys.readouterr().out == "prompt\nlonger\n"
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["compare-methods", str(file), *out, "--report"]) == 2
    assert "no results yet" in capsys.readouterr().err
    assert cli.main(["compare-methods", str(file), *out, "--json", "--quiet"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["method"] for line in lines] == ["zero_shot", "prompt", "longer"] and lines[2]["of_reference"] == 1.0
    assert cli.main(["compare-methods", str(file), *out, "--report"]) == 0
    assert "longer" in capsys.readouterr().out and (tmp_path / "out" / "comparison.html").exists()


def test_a_folder_holds_no_results_of_two_methods_of_one_name(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    base = comparison(world, seeds=1, transfer=False)
    found = compare_methods(load_config(base), tmp_path / "out")

    def changed(**changes: Any) -> Any:
        prompt, longer = base["methods"]
        return load_config(base | {"methods": [prompt, longer | changes]})

    other_length = changed(prompt={"kind": "soft_prompt", "name": "longer", "length": 4})
    colours, places = base["tasks"]
    for config, words in (
        (other_length, "results of another method 'longer'"),
        (changed(steps=3), "results of another method 'longer'"),
        (changed(learning_rates=[0.1]), "results of another method 'longer'"),
        (
            load_config(base | {"tasks": [colours | {"template": "{text}"}, places]}),
            "results of another task 'colours'",
        ),
        (load_config(base | {"seed": 5}), "results of another seed"),
        (load_config(base | {"transfer": True}), "results of another transfer"),
    ):
        with pytest.raises(ConfigError, match=words):
            compare_methods(config, tmp_path / "out")
    added = base["methods"] + [{"prompt": {"kind": "soft_prompt", "name": "new"}, "learning_rates": [0.1], "steps": 1}]
    assert compare_methods(load_config(base | {"methods": added}), tmp_path / "out")[: len(found)] == found
    (world / "colours.jsonl").write_text((world / "colours.jsonl").read_text().replace("cat", "dog"))
    with pytest.raises(ConfigError, match="results of another task 'colours'"):
        compare_methods(load_config(base), tmp_path / "out")
    (tmp_path / "out" / "comparison.json").write_text("{torn")
    with pytest.raises(ConfigError, match="is damaged"):
        compare_methods(load_config(base), tmp_path / "out")


def test_a_method_without_results_may_still_be_mended(tmp_path: Path) -> None:
    base = comparison(make_world(tmp_path), seeds=1, reference=None)
    many = {"delta": {"kind": "partial_layers", "name": "many", "blocks": 9}, "learning_rates": [0.1]}
    with pytest.raises(ConfigError, match="blocks is 9"):
        compare_methods(load_config(base | {"methods": [many]}), tmp_path / "out")
    many["delta"] = many["delta"] | {"blocks": 1}  # type: ignore[operator]
    assert len(compare_methods(load_config(base | {"methods": [many]}), tmp_path / "out")) == 4


def test_bad_folders_and_lines(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        compare_methods(load_config(comparison(world)), tmp_path / "file")
    whole = result("a", "x", 0, 0.5)
    wrong: tuple[dict[str, Any], ...] = ({"score": "high"}, {"task": None}, {"ci95": []}, {"ci95": [0.1, "a"]})
    wrong += ({"learning_rate": None}, {"lm_parameters": 0}, {"history": [{"score": 1}]}, {"transfer": {"y": None}})
    wrong += ({"score": math.nan}, {"saved_bytes": "many"}, {"kept_parameters": -1})
    untold = {key: value for key, value in whole.items() if key != "learning_rate"}
    for line in ({"name": "a/x/0"}, untold, *(whole | part for part in wrong), [1], "a"):
        (tmp_path / "results.jsonl").write_text(json.dumps(whole) + "\n" + json.dumps(line) + "\n")
        with pytest.raises(ConfigError, match=r"results.jsonl:2: damaged line"):
            read_results(tmp_path)
    with pytest.raises(ConfigError, match="less than or equal"):
        load_config(comparison(world, seed=2**53, seeds=2))  # the second seed is beyond the greatest
    taken = comparison(world)
    taken["methods"][0]["prompt"]["name"] = "zero_shot"
    with pytest.raises(ConfigError, match="a method is called 'zero_shot'"):
        load_config(taken)
