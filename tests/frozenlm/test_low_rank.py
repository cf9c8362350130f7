"""Low-rank prompts: rank, count, and where both forms begin."""

from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.checkpoint import save_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.initializers import from_text, uniform
from frozenlm.prompts.low_rank import KIND, LowRankPrompt
from frozenlm.prompts.soft_prompt import SoftPrompt
from tests.toys import toy_lm


@pytest.mark.parametrize(("form", "count"), [("factors", 3 * (7 + 32)), ("projection", 2 * 3 * 32)])
def test_trained_parameters_by_formula(form: Any, count: int) -> None:
    prompt = LowRankPrompt.create(toy_lm(), 7, rank=3, form=form)
    assert sum(parameter.numel() for parameter in prompt.parameters()) == count
    assert LowRankPrompt.parameter_count(length=7, hidden_size=32, rank=3, form=form) == count
    assert (prompt.length, prompt.rank, prompt.hidden_size, prompt.form) == (7, 3, 32, form)
    assert torch.linalg.matrix_rank(prompt().detach()) == 3


def test_factors_begin_at_the_closest_prompt_of_their_rank() -> None:
    lm = toy_lm()
    plain = SoftPrompt.create(lm, 6, seed=2)().detach()
    scales = torch.linalg.svdvals(plain)
    for rank in range(1, 7):
        apart = (LowRankPrompt.create(lm, 6, rank=rank, seed=2)().detach() - plain).norm()
        assert apart == pytest.approx(float(scales[rank:].norm()), abs=1e-4)  # Eckart and Young
    prompt = LowRankPrompt.create(lm, 6, rank=6, seed=2)
    assert torch.allclose(prompt(), plain, atol=1e-5)
    assert prompt.left.norm().item() == pytest.approx(prompt.right.norm().item(), rel=1e-4)


def test_projection_begins_near_it() -> None:
    lm = toy_lm()
    plain = SoftPrompt.create(lm, 6, seed=2)().detach()
    near = LowRankPrompt.create(lm, 6, rank=6, form="projection", seed=2)
    assert torch.equal(near.initial, plain)  # type: ignore[arg-type]
    assert (near() - plain).norm() < 0.005 * plain.norm()
    assert (plain @ near.left.detach()).abs().max() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0; expected 1 to 4"),
        ({"rank": 5}, "rank is 5; expected 1 to 4"),
        ({"form": "product"}, "form is 'product'"),
        ({"position": "middle"}, "position is 'middle'"),
        ({"form": "projection", "init": from_text("cat"), "rank": 2}, "a rank below 2"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LowRankPrompt.create(toy_lm(), 4, **({"init": uniform()} | settings))


@pytest.mark.parametrize(
    "shapes",
    [[(4, 2), (3, 32)], [(4,), (2, 32)], [(4, 2), (2, 32), (5, 32)], [(32, 2), (2, 32), (5, 31)]],
)
def test_matrices_must_match(shapes: list[tuple[int, ...]]) -> None:
    left, right, *initial = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ShapeError, match="a low-rank prompt is U"):
        LowRankPrompt(left, right, initial=initial[0] if initial else None)


@pytest.mark.parametrize("change", [{"form": "projection"}, {"position": "middle"}])
def test_files_that_do_not_fit(tmp_path: Path, change: dict[str, Any]) -> None:
    lm = toy_lm()
    tensors = LowRankPrompt.create(lm, 4, rank=2).state_dict()
    config = {"form": "factors", "position": "suffix"} | change
    save_module(tmp_path, tensors, config, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError):
        LowRankPrompt.load(tmp_path, lm)
