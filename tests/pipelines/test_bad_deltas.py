"""A tour of what can go wrong with deltas, through the command line: one clear message each, the right exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from tests.pipelines.toy_multitask import make_world, settings

LORA = {"kind": "lora", "name": "d", "rank": 2}
PREFIX = {"kind": "p_tuning_v2", "name": "d", "length": 3}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A toy world a kind of LM."""
    return {lm: make_world(tmp_path_factory.mktemp(lm), lm) for lm in ("opt", "gpt2", "llama", "t5")}


def write(folder: Path, world: Path, **changes: Any) -> str:
    training = {"steps": 2, "batch_size": 2, "eval_every": 2, "learning_rate": 0.01, "warmup_steps": 0, "dev_limit": 2}
    base = {"prompt": None, "training": training, "workspace": str(folder / "work")}
    (folder / "job.yaml").write_text(json.dumps(settings(world, **(base | changes))))
    return str(folder / "job.yaml")


@pytest.mark.parametrize(
    ("delta", "says"),
    [
        (LORA | {"kind": "lorra"}, "expected one of adapter, bitfit, diff_pruning, dora"),
        (LORA | {"kind": "lorra"}, "did you mean 'lora'?"),
        (LORA | {"rnk": 2}, "delta.rnk: unknown key; did you mean 'rank'?"),
        (LORA | {"rank": 0}, "delta.rank: input should be greater than or equal to 1"),
        (LORA | {"targets": ["nope"]}, "no dense layer of OPTForCausalLM is meant by ['nope']"),
        (LORA | {"targets": ["lm_head"]}, "no dense layer of OPTForCausalLM is meant by ['lm_head']"),
        (LORA | {"name": "../d"}, "delta.name: string should match pattern"),
        ({"kind": "adapter", "name": "d", "form": "parallel", "cross": True}, "cross for houlsby adapters only"),
        ({"kind": "bitfit", "name": "d", "which": ["nope"]}, "no biases, or not all, that are meant"),
        (PREFIX | {"length": 90}, "window of 96 tokens leaves 0 for an input beside 90 soft tokens"),
        (PREFIX | {"init": " "}, "has no token; give at least one word"),
        ({"kind": "masking", "name": "d", "threshold": 5}, "expected a number between -1 and 1"),
        ({"kind": "partial_layers", "name": "d", "blocks": 3}, "blocks is 3; expected 1 to 2"),
        ({"kind": "intrinsic_dimension", "name": "d", "dimension": 1}, "expected more than the 3 scales"),
    ],
    ids=lambda value: None if isinstance(value, str) else value["kind"],
)
def test_a_delta_that_cannot_be(
    worlds: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], delta: dict[str, Any], says: str
) -> None:
    assert main(["train", write(tmp_path, worlds["opt"], delta=delta), "-q"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "work" / "modules" / "d").exists()


@pytest.mark.parametrize(
    ("lm", "kind", "says"),
    [
        ("llama", "bitfit", "LlamaForCausalLM has no biases"),
        ("t5", "bitfit", "T5ForConditionalGeneration has no biases"),
        ("gpt2", "loha", "loha is not defined for Conv1D layers"),
    ],
)
def test_a_method_that_is_not_defined_for_the_lm(
    worlds: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], lm: str, kind: str, says: str
) -> None:
    assert main(["train", write(tmp_path, worlds[lm], delta={"kind": kind, "name": "d"}), "-q"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("delta", [LORA, PREFIX], ids=lambda delta: delta["kind"])
def test_a_delta_of_another_lm(
    worlds: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], delta: dict[str, Any]
) -> None:
    assert main(["train", write(tmp_path, worlds["opt"], delta=delta), "-q"]) == 0
    for lm in ("llama", "t5"):
        job = write(tmp_path, worlds[lm], delta=delta)
        assert main(["ask", job, "the nile"]) == 1
        assert "was trained for another LM" in capsys.readouterr().err
        assert main(["train", job, "-q"]) == 2
        assert "holds a run with other settings" in capsys.readouterr().err
