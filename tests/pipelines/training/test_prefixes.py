"""Prefixes of a config: where they begin, and where they stand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from pipelines.build import frozen_lm
from pipelines.build_deltas import new_delta
from pipelines.config_deltas import Delta
from pipelines.cost import cost
from pipelines.dry_run import describe
from pipelines.errors import CheckpointError, ConfigError
from pipelines.pipeline import Pipeline
from pipelines.training import train
from tests.pipelines.toy_multitask import configured, make_world

KINDS = ("prefix_tuning", "p_tuning_v2")


def asked(world: Path, **delta: Any) -> Any:
    return configured(world, prompt=None, delta={"kind": "p_tuning_v2", "name": "d", "length": 3} | delta)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_begins_as_the_config_says(tmp_path: Path, kind: str) -> None:
    world = make_world(tmp_path, "t5")
    lm = frozen_lm(asked(world).lm)

    def start(init: Any) -> dict[str, torch.Tensor]:
        return new_delta(asked(world, kind=kind, init=init).delta, lm, 0)()  # type: ignore[operator]

    assert all(part.abs().max() < 1e-6 for part in start({"kind": "zeros"}).values())
    for scale in (0.02, 2.0):
        drawn = torch.cat([part.flatten() for part in start({"kind": "random", "scale": scale}).values()])
        assert drawn.std().item() == pytest.approx(scale, rel=0.1)
    small, unsaid = start({"kind": "random", "scale": 0.02}), start({"kind": "random"})
    assert all(torch.equal(small[place], unsaid[place]) for place in small)
    assert not torch.equal(start("the cat")["encoder"], start(None)["encoder"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_stands_where_the_config_says(tmp_path: Path, kind: str) -> None:
    world = make_world(tmp_path, "t5")
    config = asked(world, kind=kind, places=["cross", "encoder"])
    plan = describe(config)
    assert train(config)["trained_parameters"] == plan["trained_parameters"] == cost(config)["trained_parameters"]
    for other in (["decoder"], None):
        with (
            Pipeline.from_config(asked(world, kind=kind, places=other)) as pipeline,
            pytest.raises(CheckpointError, match=r"trained with places \['cross', 'encoder'\], the config asks for"),
        ):
            pipeline("the cat is red")
    with Pipeline.from_config(asked(world, kind=kind, places=["encoder", "cross"])) as pipeline:
        assert pipeline("the cat is red").module == "d"
    with pytest.raises(ConfigError, match="other settings"):
        train(asked(world, kind=kind))


@pytest.mark.parametrize("attempt", [train, describe, cost])
def test_a_place_that_the_model_does_not_have(tmp_path: Path, attempt: Any) -> None:
    config = asked(make_world(tmp_path, "opt"), places=["decoder", "cross"])
    with pytest.raises(ConfigError, match=r"places is \['decoder', 'cross'\]; this model has decoder"):
        attempt(config)


def test_what_a_run_remembers_is_as_it_was_where_nothing_is_chosen() -> None:
    block = TypeAdapter(Delta).validate_python({"kind": "p_tuning_v2", "name": "d", "init": "the cat"})
    remembered = {"kind": "p_tuning_v2", "name": "d", "length": 20, "position_offset": True, "init": "the cat"}
    assert block.model_dump(mode="json") == remembered


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init": ""}, "at least 1 character"),
        ({"init": {"kind": "random", "scale": 0}}, "greater than 0"),
        ({"init": {"kind": "zeros", "scale": 1}}, "scale"),
        ({"init": {"kind": "text"}}, "random.*zeros"),
        ({"places": []}, "at least 1 item"),
        ({"places": ["middle"]}, "encoder"),
        ({"places": ["cross", "cross"]}, "places are cross, cross; name each once"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        asked(tmp_path, **settings)
