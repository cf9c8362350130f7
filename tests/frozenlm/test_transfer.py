"""Prompt transfer: similarity, averages, and what a prompt can start from."""

from pathlib import Path

import pytest
import torch

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.idpg import IDPG
from frozenlm.prompts.initializers import from_vectors
from frozenlm.prompts.low_rank import LowRankPrompt
from frozenlm.prompts.p_tuning import PTuning
from frozenlm.prompts.slots import SlottedPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.task_prompts import TaskPrompts
from frozenlm.prompts.transfer import average, nearest, saved_vectors, similarity, vectors_of
from tests.toys import toy_encoder, toy_lm

EAST, NORTH, WEST = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]), torch.tensor([[-1.0, 0.0]])
BOTH = torch.cat([EAST, NORTH])


def test_similarity_is_a_cosine() -> None:
    for by in ("tokens", "average"):
        assert similarity(EAST, 5 * EAST, by=by) == pytest.approx(1)  # type: ignore[arg-type]
        assert similarity(EAST, NORTH, by=by) == pytest.approx(0)  # type: ignore[arg-type]
        assert similarity(EAST, WEST, by=by) == pytest.approx(-1)  # type: ignore[arg-type]
    assert similarity(EAST, BOTH) == pytest.approx((1 + 0) / 2)  # of all pairs of rows
    assert similarity(EAST, BOTH, by="average") == pytest.approx(2 / 13**0.5)  # of (2, 0) and (1, 1.5)


def test_the_most_similar_sources_come_first() -> None:
    sources = {"west": WEST, "both": BOTH, "east": EAST, "again": EAST}
    assert nearest(EAST, sources, 3) == [("east", pytest.approx(1)), ("again", pytest.approx(1)), ("both", 0.5)]
    assert nearest(WEST, sources)[0][0] == "west"
    with pytest.raises(ConfigError, match="0 sources"):
        nearest(EAST, {})
    with pytest.raises(ConfigError, match="by 'angle'"):
        nearest(EAST, sources, by="angle")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="of one width"):
        similarity(EAST, torch.zeros(1, 3))


def test_averages() -> None:
    assert torch.equal(average([EAST, NORTH]), torch.tensor([[1.0, 1.5]]))
    assert torch.equal(average([EAST, NORTH], [3.0, 1.0]), torch.tensor([[1.5, 0.75]]))
    assert torch.equal(average([EAST, WEST], [0.5, -0.5]), EAST)  # what is unlike has no say
    with pytest.raises(ShapeError, match="of one shape"):
        average([EAST, BOTH])
    for weights in ([0.0, -1.0], [1.0]):
        with pytest.raises(ConfigError, match="weights are"):
            average([EAST, NORTH], weights)


def test_a_prompt_starts_where_another_ended() -> None:
    lm = toy_lm()
    source = SoftPrompt.create(lm, 3, seed=5)
    started = SoftPrompt.create(lm, 3, init=from_vectors(source.vectors))
    assert torch.equal(started(), source()) and started.vectors.data_ptr() != source.vectors.data_ptr()
    with pytest.raises(ShapeError, match=r"\[3, 32\], the new one \[P, H\] = \[4, 32\]"):
        SoftPrompt.create(lm, 4, init=from_vectors(source.vectors))
    with pytest.raises(ShapeError, match=r"\[3, 32\], the new one \[P, H\] = \[3, 16\]"):
        SoftPrompt.create(toy_lm(n_embd=16), 3, init=from_vectors(source.vectors))


def test_saved_prompts_of_every_kind_that_stays_the_same(tmp_path: Path) -> None:
    lm = toy_lm()
    made = [
        SoftPrompt.create(lm, 3),
        SlottedPrompt.create(lm, (1, 2)),
        PTuning.create(lm, (3, 0), anchor=False),
        LowRankPrompt.create(lm, 3, rank=2),
    ]
    for number, module in enumerate(made):
        module.save(tmp_path / str(number), lm)
        assert torch.equal(saved_vectors(tmp_path / str(number), lm), module())  # type: ignore[operator]
    tasks = TaskPrompts({"a": torch.zeros(3, 32), "b": torch.ones(3, 32)})
    tasks.save(tmp_path / "tasks", lm)
    assert torch.equal(saved_vectors(tmp_path / "tasks", lm, "b"), torch.ones(3, 32))
    with pytest.raises(ConfigError, match="no prompt for task None"):
        saved_vectors(tmp_path / "tasks", lm)
    with pytest.raises(CheckpointError, match="another LM"):
        saved_vectors(tmp_path / "0", toy_lm(seed=1))


def test_prompts_that_depend_on_the_input_start_nothing(tmp_path: Path) -> None:
    lm = toy_lm()
    module = IDPG.create(lm, toy_encoder("bert"), 3)
    with pytest.raises(ConfigError, match="a IDPG writes another prompt for each input"):
        vectors_of(module)
    module.save(tmp_path, lm)
    with pytest.raises(ConfigError, match="kind 'idpg'; a prompt can start from soft_prompt"):
        saved_vectors(tmp_path, lm)
