"""Two figures of every training: the numbers that the optimizer moves, and those that serve what was trained."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.loader import load_config
from pipelines.training import train
from tests.pipelines.test_classification import settings as of_an_encoder
from tests.pipelines.toy_multitask import configured, make_world

H, LAYERS = 32, 2  # of the toy LM
PREFIX = 2 * LAYERS * 3 * H  # keys and values of P = 3 in each layer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def figures(world: Path, workspace: Path, **trained: Any) -> tuple[int, int]:
    summary = train(configured(world, **{"prompt": None, "encoder": None, "workspace": str(workspace)} | trained))
    return summary["trained_parameters"], summary["kept_parameters"]


@pytest.mark.parametrize(
    ("prompt", "trained", "kept"),
    [
        ({"kind": "soft_prompt"}, 3 * H, 3 * H),
        ({"kind": "low_rank", "rank": 1}, 3 + H, 3 + H),  # two factors, which are fewer than the prompt they make
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)
def test_of_prompts(tmp_path: Path, world: Path, prompt: dict[str, Any], trained: int, kept: int) -> None:
    assert figures(world, tmp_path, prompt={"name": "p", "length": 3} | prompt) == (trained, kept)


def test_of_p_tuning_the_network_is_trained_and_the_prompt_kept(tmp_path: Path, world: Path) -> None:
    trained, kept = figures(world, tmp_path, prompt={"kind": "p_tuning", "name": "p", "length": 3})
    assert kept == 3 * H < trained


def test_of_prefix_tuning_the_network_is_trained_and_the_prefix_kept(tmp_path: Path, world: Path) -> None:
    block = {"kind": "prefix_tuning", "name": "d", "length": 3}
    sizes = {"embedding_size": 4, "middle_size": 5}
    trained, kept = figures(world, tmp_path, delta=block | sizes)
    assert (trained, kept) == (3 * 4 + 4 * 5 + 5 + 5 * PREFIX // 3 + PREFIX // 3, PREFIX)
    assert figures(world, tmp_path / "v2", delta=block | {"kind": "p_tuning_v2"}) == (PREFIX, PREFIX)


def test_of_diff_pruning_gates_and_values_are_trained_and_the_share_kept(tmp_path: Path, world: Path) -> None:
    full, _ = figures(world, tmp_path / "full", delta={"kind": "full_copy", "name": "d"})
    block = {"kind": "diff_pruning", "name": "d", "share": 0.01, "structured": None}
    assert figures(world, tmp_path, delta=block) == (2 * full, int(0.01 * full))
    assert figures(world, tmp_path, delta=block) == (2 * full, int(0.01 * full))  # when it is already trained too


def test_of_masks_and_random_subspaces(tmp_path: Path, world: Path) -> None:
    trained, kept = figures(world, tmp_path / "a", delta={"kind": "masking", "name": "d"})
    assert trained == kept > 0  # a bit a weight
    subspace = {"kind": "intrinsic_dimension", "name": "d", "dimension": 16}
    assert figures(world, tmp_path / "b", delta=subspace) == (16, 16)


def test_of_a_head_and_a_delta_both_parts_count(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    head = 24 * 2 + 2
    alone = train(load_config(of_an_encoder(world, delta=None)))
    assert (alone["trained_parameters"], alone["kept_parameters"]) == (head, head)
    block = {"kind": "diff_pruning", "name": "d", "share": 0.01}
    both = train(load_config(of_an_encoder(world, delta=block) | {"name": "both"}))
    assert head < both["kept_parameters"] < both["trained_parameters"]
