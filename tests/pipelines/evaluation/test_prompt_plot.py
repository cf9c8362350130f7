"""Exported prompts: variance between tasks by hand, principal components of a known plane, files and picture."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Soft
from pipelines.errors import CheckpointError, ConfigError, MissingExtraError
from pipelines.evaluation.prompt_plot import (
    JSON,
    NO_TASK,
    TENSORS,
    WrittenPrompts,
    draw_prompts,
    principal_plane,
    written_prompts,
)

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs frozenlm[plots]")


def prompts(numbers: list[float], tasks: list[str]) -> WrittenPrompts:
    """Prompts of two vectors of two numbers, of which only the first differs from input to input."""
    vectors = np.ones((len(numbers), 2, 2), dtype=np.float32)
    vectors[:, 0, 0] = numbers
    return WrittenPrompts(vectors, tasks, [f"text {n}" for n in numbers])


class ByLength(torch.nn.Module):
    """Writes the length of the text; counts its batches and whether it was training."""

    position, length = "suffix", 3

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, bool]] = []

    def segments(self, inputs):
        self.batches.append((len(inputs), self.training))
        return [Soft(torch.full((3, 4), float(len(one.text)))) for one in inputs]


def test_between_tasks_by_hand() -> None:
    # mean 4; a: 1, 3 (mean 2), b: 5, 7 (mean 6). Total 9+1+1+9 = 20, between 2*4 + 2*4 = 16.
    found = prompts([1, 3, 5, 7], ["a", "a", "b", "b"])
    assert found.between_tasks == pytest.approx(16 / 20)
    assert found.between_by_chance == pytest.approx(1 / 3)
    # Tasks of unequal size weigh by their inputs: means 1 and (3+5+7)/3 = 5, between 1*9 + 3*1.
    assert prompts([1, 3, 5, 7], ["a", "b", "b", "b"]).between_tasks == pytest.approx(12 / 20)


@pytest.mark.parametrize(
    ("numbers", "share"), [([2, 2, 9, 9], 1.0), ([1, 9, 1, 9], 0.0), ([5, 5, 5, 5], None), ([0.1, 0.1, 0.1, 0.1], None)]
)
def test_between_tasks_at_its_ends(numbers: list[float], share: float | None) -> None:
    found = prompts(numbers, ["a", "a", "b", "b"]).between_tasks
    assert found is None if share is None else found == pytest.approx(share)


def test_shuffled_tasks_give_the_share_of_chance() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 2, 3)).astype(np.float32)
    shares = [
        WrittenPrompts(vectors, rng.permutation(["a", "b", "c"] * 20).tolist(), [""] * 60).between_tasks
        for _ in range(200)
    ]
    assert np.mean(shares) == pytest.approx(2 / 59, rel=0.15)


def test_one_soft_prompt_has_no_variance_and_is_written_in_batches() -> None:
    inputs = [PromptInput(f"text {n}", "ab"[n % 2]) for n in range(5)]
    found = written_prompts(SoftPrompt(torch.randn(3, 8)), inputs, batch_size=2)
    assert (found.vectors.shape, found.between_tasks) == ((5, 3, 8), None)
    module = ByLength().train()
    found = written_prompts(module, [*inputs, PromptInput("longer")], batch_size=4)
    assert module.batches == [(4, False), (2, False)] and module.training
    assert found.vectors[:, 0, 0].tolist() == [6.0] * 6 and found.tasks[-1] == NO_TASK
    with pytest.raises(ConfigError, match="no input"):
        written_prompts(module, [])


def test_principal_plane_of_a_known_one() -> None:
    # Six dimensions, of which two orthogonal directions vary: 3 times the first, 1 time the second.
    first, second = np.eye(6)[1], np.eye(6)[4]
    places = np.array([[3, 0], [-3, 0], [0, 1], [0, -1]])
    points, shares = principal_plane(places @ np.stack([first, second]))
    assert np.abs(points) == pytest.approx(np.abs(places)) and shares == pytest.approx((0.9, 0.1))
    assert principal_plane(np.zeros((1, 6)))[1] == (0.0, 0.0)
    assert principal_plane(np.zeros((3, 1)))[0].shape == (3, 2)


def test_files(tmp_path: Path) -> None:
    found = prompts([1, 3, 5, 7], ["a", "a", "b", "b"])
    found.save(tmp_path / "out", about={"lm_fingerprint": "f" * 64})
    again = WrittenPrompts.load(tmp_path / "out")
    assert (again.vectors == found.vectors).all() and again.vectors.dtype == np.float32
    assert (again.tasks, again.texts) == (found.tasks, found.texts)
    said = json.loads((tmp_path / "out" / JSON).read_text())
    assert (said["n"], said["length"], said["hidden_size"], said["lm_fingerprint"]) == (4, 2, 2, "f" * 64)
    assert said["between_tasks"] == pytest.approx(0.8)
    assert said["inputs"][2] == {"task": "b", "text": "text 5"}


def test_damaged_files(tmp_path: Path) -> None:
    prompts([1, 3], ["a", "b"]).save(tmp_path)
    whole = (tmp_path / JSON).read_text()
    (tmp_path / JSON).write_text("{}")
    with pytest.raises(CheckpointError, match="holds no exported prompts"):
        WrittenPrompts.load(tmp_path)
    (tmp_path / JSON).write_text(whole)
    prompts([1, 3, 5], ["a", "b", "b"]).save(tmp_path / "other")
    (tmp_path / TENSORS).write_bytes((tmp_path / "other" / TENSORS).read_bytes())
    with pytest.raises(CheckpointError, match=r"shape \[3, 2, 2\], prompts.json names 2 inputs"):
        WrittenPrompts.load(tmp_path)


@needs_matplotlib
def test_picture(tmp_path: Path) -> None:
    import matplotlib

    settings, pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    rng = np.random.default_rng(0)
    tasks = [f"task {n % 24}" for n in range(60)]
    found = WrittenPrompts(rng.normal(size=(60, 2, 3)).astype(np.float32), tasks, [""] * 60)
    for name in ("a.png", "b.png"):
        draw_prompts(found, tmp_path / "made" / name)
    first, second = ((tmp_path / "made" / name).read_bytes() for name in ("a.png", "b.png"))
    assert first.startswith(b"\x89PNG") and first == second and len(first) > 10_000
    assert dict(matplotlib.rcParams) == settings and ("matplotlib.pyplot" in sys.modules) is pyplot
    draw_prompts(prompts([5], ["a"]), tmp_path / "one.png", title="one input")
    with pytest.raises(CheckpointError, match="cannot write"):
        draw_prompts(found, tmp_path / "one.png" / "below.png")


def test_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"frozenlm\[plots\]"):
        draw_prompts(prompts([1, 2], ["a", "b"]), tmp_path / "a.png")
