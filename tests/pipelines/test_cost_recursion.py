"""`frozenlm cost` of both forms of recursion."""

from pathlib import Path
from typing import Any

import pytest

from frozenlm.architectures import meta_model
from frozenlm.cost import generate
from frozenlm.recursion.when import TunedThreshold
from frozenlm.shapes import ModelShape
from pipelines.build_recursion import save_threshold
from pipelines.cli import main
from pipelines.cost import cost
from pipelines.cost_types import Assumed
from pipelines.errors import ConfigError
from pipelines.loader import load_config
from tests.pipelines.toy_recursion import make_world, settings, written
from tests.toys import toy_lm, toy_model

SMALL = Assumed(question_tokens=8, passage_tokens=10)
H = 32
LM = ModelShape.of_lm(meta_model(toy_model("llama").config, "lm"))


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


def test_a_vote_has_no_second_pass(world: Path) -> None:
    vote, both = found(world, "textual_recursion", answer_by="majority"), found(world, "textual_recursion")
    assert "second_pass" not in vote["components"]
    assert (vote["second_pass_share"], both["second_pass_share"]) == (0.0, 1.0)
    assert both["flops_mean"] == both["flops_per_input"] and both["flops_spared_input"] is None


@pytest.mark.parametrize("reads", [False, True])
def test_textual_spares_sure_questions_all_but_a_first_answer(world: Path, reads: bool) -> None:
    unsure, always = (found(world, "textual_recursion", reads=reads, when=w) for w in ("below_confidence", "always"))
    tokens, answer = unsure["assumptions"]["input_tokens"], unsure["assumptions"]["answer_tokens"]
    one = generate(LM, tokens + 3, answer).total
    assert unsure["flops_spared_input"] == one
    # Closed book nothing is shared; over passages the first answer goes on from what the candidates go on from.
    shared = LM.body.at(tokens - 8) if reads else 0
    assert unsure["components"]["first_answer"]["flops"] == one - shared
    assert unsure["flops_per_input"] == always["flops_per_input"] + one - shared
    assert (unsure["second_pass_share"], unsure["flops_mean"]) == (None, None)
    assert any("no threshold is tuned" in line for line in unsure["not_counted"])


@pytest.mark.parametrize("plain", [None, {"length": 5}, {"length": 5, "position": "prefix"}])
def test_neural_spares_sure_questions_all_but_a_plain_pass(world: Path, plain: dict[str, Any] | None) -> None:
    rules = ("below_confidence", "always")
    unsure, always = (found(world, "neural_recursion", when=rule, plain_prompt=plain) for rule in rules)
    tokens, answer, soft = 8, unsure["assumptions"]["answer_tokens"], 5 if plain else 0
    one = generate(LM, tokens + soft, answer).total
    assert unsure["flops_spared_input"] == one
    # Pass 1 goes on from what the plain pass has read, unless its prompt stands in front.
    shared = 0 if plain and "position" in plain else LM.body.at(tokens)
    assert unsure["components"]["plain_pass"] == {
        "flops": one - shared,
        "parameters": soft * H,
        "trained_parameters": 0,
    }
    assert unsure["flops_per_input"] == always["flops_per_input"] + one - shared
    assert unsure["trained_parameters"] == always["trained_parameters"]
    assert always["second_pass_share"] == 1.0


@pytest.mark.parametrize("kind", ["neural_recursion", "textual_recursion"])
def test_the_mean_is_that_of_the_share_on_dev(world: Path, tmp_path: Path, kind: str) -> None:
    changes: Any = {"when": "below_confidence", "workspace": str(tmp_path)}
    config = load_config(settings(world, kind, **changes))
    tuned = TunedThreshold(0.5, score=0.6, share=0.25, never=0.4, always=0.5)
    save_threshold(config, toy_lm("llama"), tuned, {"prompts": [None, None]}, 8)
    record = cost(config, SMALL)
    spared, paying = record["flops_spared_input"], record["flops_per_input"]
    assert record["second_pass_share"] == 0.25
    assert record["flops_mean"] == round(0.25 * paying + 0.75 * spared)
    other = {**changes, "when": {"rule": "below_confidence", "price": 0.1}}
    assert cost(load_config(settings(world, kind, **other)), SMALL)["flops_mean"] is None
    fixed = {**changes, "when": {"rule": "below_confidence", "threshold": 0.3}}
    assert cost(load_config(settings(world, kind, **fixed)), SMALL)["flops_mean"] is None


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
    assert main(["cost", str(written(world, "neural_recursion", when="below_confidence"))]) == 0
    assert "an input that is spared" in capsys.readouterr().out
