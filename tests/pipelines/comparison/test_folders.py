"""What a comparison's folder keeps apart: parts and numbers of parts, weights, files that are not there, methods whose
modules would share a folder."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.comparison.results import alone, in_order, read_results, results_file
from pipelines.comparison.runs import compare_methods
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from pipelines.training import train
from tests.pipelines.comparison.test_comparison import comparison
from tests.pipelines.toy_multitask import make_world
from tests.toys import toy_model

ONE = {"methods": [{"prompt": {"kind": "soft_prompt", "name": "prompt"}, "learning_rates": [0.05]}], "seeds": 1}
ONE |= {"reference": None}


def test_a_missing_task_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    config = load_config(comparison(make_world(tmp_path)))
    (tmp_path / "places.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"task 'places', train: .*places\.jsonl is no file"):
        compare_methods(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_number_of_parts_at_a_time(tmp_path: Path) -> None:
    whole, first, second = (results_file(tmp_path, part) for part in ((0, 1), (0, 2), (1, 2)))
    with alone(first), alone(second):
        with pytest.raises(ConfigError, match=r"shares the work in .* as I/2 .* this one would as I/1"), alone(whole):
            pass
        with pytest.raises(ConfigError, match="another process runs this part"), alone(first):
            pass
        assert not whole.exists()
    with alone(whole), pytest.raises(ConfigError, match="as I/1"), alone(second):
        pass
    with alone(second):
        pass  # all others have gone


@pytest.mark.parametrize(
    ("file", "words"),
    [("results.jsonl", "another process runs this part"), ("results-1-of-2.jsonl", "the same number of parts")],
)
def test_a_comparison_leaves_the_parts_of_other_processes_alone(file: str, words: str, tmp_path: Path) -> None:
    config = load_config(comparison(make_world(tmp_path), **ONE))
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / file).open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=words):
            compare_methods(config, tmp_path / "out")


def test_other_weights_at_the_same_path_are_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    config, out = load_config(comparison(world, **ONE)), tmp_path / "out"
    before = compare_methods(config, out)
    assert len({result["lm_fingerprint"] for result in before}) == 1
    toy_model("gpt2", seed=5).save_pretrained(world / "lm")
    with pytest.raises(ConfigError, match="results of other weights: there the LM's fingerprint is"):
        compare_methods(config, out)
    untold = [{key: value for key, value in one.items() if key != "lm_fingerprint"} for one in before]
    (out / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in untold))
    assert compare_methods(config, out) == untold  # of an earlier version, which did not say


def test_methods_whose_modules_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    base = comparison(make_world(tmp_path), reference=None)
    short, long = base["methods"]
    short["prompt"]["name"], long["prompt"]["name"] = "lora", "lora-a"
    colours, places = base["tasks"]
    tasks = [colours | {"name": "a-b"}, places | {"name": "b"}]
    with pytest.raises(ConfigError, match="method 'lora' on task 'a-b' and method 'lora-a' on task 'b' would train"):
        load_config(base | {"tasks": tasks})
    load_config(base)
    short["learning_rates"] = [0.1, 0.10000001]
    with pytest.raises(ConfigError, match="the same in six digits"):
        load_config(base)


def test_results_come_in_the_order_of_the_config(tmp_path: Path) -> None:
    config = load_config(comparison(make_world(tmp_path), seeds=2))
    names = [
        (method, task, seed) for method in ("prompt", "longer") for task in ("colours", "places") for seed in (0, 1)
    ]
    wanted: list[dict[str, Any]] = [{"method": "zero_shot", "task": "colours", "seed": 0}]
    wanted += [dict(zip(("method", "task", "seed"), name, strict=True)) for name in names]
    wanted += [{"method": "dropped", "task": "colours", "seed": 0}]
    assert in_order(wanted[::-1], config) == wanted
    out = tmp_path / "out"
    for part in ((1, 2), (0, 2)):
        compare_methods(config, out, part=part)
    methods = dict.fromkeys(result["method"] for result in in_order(read_results(out), config))
    assert list(methods) == ["zero_shot", "prompt", "longer"]


def test_train_points_to_the_command_that_trains_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"frozenlm compare-methods .* --dry-run"):
        train(load_config(comparison(make_world(tmp_path))))
