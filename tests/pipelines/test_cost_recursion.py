"""`frozenlm cost` of both forms of recursion."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.cost import Assumed, cost
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from tests.pipelines.toy_recursion import make_world, settings, written
from tests.toys import toy_model

SMALL = Assumed(question_tokens=8, passage_tokens=10)
H = 32


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("cost"), "llama")


def found(world: Path, kind: str, **changes: Any) -> dict[str, Any]:
    return cost(load_config(settings(world, kind, **changes)), SMALL)


def test_neural_costs_about_twice_one_pass(world: Path) -> None:
    two = found(world, "neural_recursion", prompt=None)
    parts = two["components"]
    assert list(parts) == ["lm_prefill", "lm_decoding", "earlier_passes", "connector"]
    assert 1.5 < two["flops_ratio_to_one_pass"] < 2.5
    assert two["trained_parameters"] == parts["connector"]["parameters"]
    three = found(world, "neural_recursion", connector={"passes": 3, "width": 8, "heads": 2, "feed_forward": 8})
    assert three["components"]["earlier_passes"]["flops"] == 2 * parts["earlier_passes"]["flops"]
    assert three["components"]["connector"]["flops"] == 2 * parts["connector"]["flops"]


def test_textual_reads_passages_once_where_its_prompts_stand_behind_them(world: Path) -> None:
    suffix = found(world, "textual_recursion", reads=True)
    prefix = found(world, "textual_recursion", reads=True, prompt={"name": "p", "length": 3, "position": "prefix"})
    assert list(suffix["components"]) == ["retriever", "first_pass_reading", "candidates", "second_pass"][1:]
    assert suffix["assumptions"]["passages_read_once"] and not prefix["assumptions"]["passages_read_once"]
    assert suffix["components"]["second_pass"]["flops"] < prefix["components"]["second_pass"]["flops"]
    assert suffix["trained_parameters"] == (3 + 2) * H
    assert suffix["assumptions"]["passages"] == 2


def test_a_vote_has_no_second_pass_and_sure_questions_cost_a_first_answer(world: Path) -> None:
    assert "second_pass" not in found(world, "textual_recursion", answer_by="majority")["components"]
    unsure = found(world, "textual_recursion", when="below_confidence")
    assert "first_answer" in unsure["components"]
    assert any("spared the second pass" in line for line in unsure["not_counted"])


def test_an_encoder_decoder_is_refused_and_the_command_prints(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_model("t5").config.save_pretrained(tmp_path / "t5")
    limits = {"answer_reserve": 6, "max_tokens": 64}
    with pytest.raises(ConfigError, match="decoder-only"):
        found(world, "neural_recursion", lm={"model": str(tmp_path / "t5")}, packing=limits)
    for kind in ("neural_recursion", "textual_recursion"):
        assert main(["cost", str(written(world, kind))]) == 0
    assert "second pass" in capsys.readouterr().out
