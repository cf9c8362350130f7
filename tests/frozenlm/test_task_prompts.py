"""One prompt a task: which row gets which, and what a task without one gets."""

from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.checkpoint import load_module, save_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.task_prompts import KIND, TaskPrompts
from tests.toys import toy_lm


def of(task: str | None) -> PromptInput:
    return PromptInput("the cat", task=task)


def ones_and_threes(**settings: Any) -> TaskPrompts:
    return TaskPrompts({"nli": torch.full((2, 32), 1.0), "qa": torch.full((2, 32), 3.0)}, **settings)


def test_each_row_gets_the_prompt_of_its_task() -> None:
    found = ones_and_threes()([of("qa"), of("nli"), of("qa")])
    assert found.shape == (3, 2, 32)
    assert found[:, 0, 0].tolist() == [3, 1, 3]
    assert [s.vectors[1, 5].item() for s in ones_and_threes().segments([of("nli"), of("qa")])] == [1, 3]


@pytest.mark.parametrize("task", ["summary", None, ""])
def test_an_unknown_or_missing_task_is_an_error_that_names_the_known_ones(task: str | None) -> None:
    with pytest.raises(ConfigError, match="'nli', 'qa'"):
        ones_and_threes()([of("qa"), of(task)])
    with pytest.raises(ConfigError, match=repr(task)):
        ones_and_threes().segments([of(task)])


@pytest.mark.parametrize("task", ["summary", None])
def test_an_unseen_task_may_get_the_mean(task: str | None) -> None:
    prompts = ones_and_threes(unseen="mean")
    assert torch.equal(prompts([of(task)])[0], torch.full((2, 32), 2.0))  # (1 + 3) / 2
    assert torch.equal(prompts([of("qa")])[0], torch.full((2, 32), 3.0))


def test_tasks_start_alike_from_the_soft_prompt_of_the_seed() -> None:
    lm = toy_lm()
    prompts = TaskPrompts.create(lm, ["a", "b", "c"], 4, seed=3)
    assert [name for name, _ in prompts.named_parameters()] == ["prompts.0", "prompts.1", "prompts.2"]
    assert sum(p.numel() for p in prompts.parameters()) == 3 * 4 * 32
    assert TaskPrompts.parameter_count(tasks=3, length=4, hidden_size=32) == 3 * 4 * 32
    assert all(torch.equal(vectors, SoftPrompt.create(lm, 4, seed=3)()) for vectors in prompts.prompts)
    assert len({vectors.data_ptr() for vectors in prompts.prompts}) == 3


def test_a_row_moves_its_own_prompt_only() -> None:
    lm = toy_lm()
    prompts = TaskPrompts.create(lm, ["a", "b"], 2)
    prompt_loss(lm, prompts, [Example.of([5, 6], [7], of("b"))])[0].backward()
    assert prompts.prompts[0].grad is None
    assert prompts.prompts[1].grad is not None and bool(prompts.prompts[1].grad.any())


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_a_mixed_batch_costs_what_its_rows_cost_with_their_own_soft_prompts(name: str, position: Any) -> None:
    lm = toy_lm(name)
    own = {task: SoftPrompt.create(lm, 2, position=position, seed=seed) for seed, task in enumerate(("a", "b"))}
    joined = TaskPrompts({task: prompt.vectors for task, prompt in own.items()}, position=position)
    examples = [Example.of([5, 6, 9], [7, 8], of("a")), Example.of([5], [9], of("b"))]
    with torch.no_grad():
        alone = sum(prompt_loss(lm, own[e.source.task or ""], [e])[0].item() for e in examples)
        assert prompt_loss(lm, joined, examples)[0].item() == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("prompts", "settings", "error", "words"),
    [
        ({}, {}, ConfigError, "at least one name"),
        ({"": torch.ones(2, 4)}, {}, ConfigError, "none of them empty"),
        ({"a": torch.ones(2, 4)}, {"unseen": "first"}, ConfigError, "'first'"),
        ({"a": torch.ones(2, 4)}, {"position": "middle"}, ConfigError, "'middle'"),
        ({"a": torch.ones(2, 4), "b": torch.ones(3, 4)}, {}, ShapeError, r"\[3, 4\]"),
        ({"a": torch.ones(4)}, {}, ShapeError, r"\[4\]"),
    ],
)
def test_bad_arguments(prompts: Any, settings: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TaskPrompts(prompts, **settings)


@pytest.mark.parametrize("tasks", [["a", "a"], "nli", []])
def test_create_wants_names_each_once(tasks: Any) -> None:
    with pytest.raises(ConfigError, match="name"):
        TaskPrompts.create(toy_lm(), tasks, 2)


def test_saved_and_loaded(tmp_path: Path) -> None:
    lm = toy_lm()
    ones_and_threes(position="prefix", unseen="mean").save(tmp_path, lm)
    again = TaskPrompts.load(tmp_path, lm)
    assert (again.tasks, again.position, again.unseen, again.length) == (("nli", "qa"), "prefix", "mean", 2)
    assert torch.equal(again([of("qa"), of("nli")]), ones_and_threes()([of("qa"), of("nli")]))
    tensors, config = load_module(tmp_path, kind=KIND)
    assert set(tensors) == {"prompts.0", "prompts.1"} and config["tasks"] == ["nli", "qa"]


def test_another_lm_is_refused(tmp_path: Path) -> None:
    ones_and_threes().save(tmp_path, toy_lm(seed=0))
    with pytest.raises(CheckpointError, match="another LM"):
        TaskPrompts.load(tmp_path, toy_lm(seed=1))
    assert TaskPrompts.load(tmp_path, toy_lm(seed=1), allow_other_lm=True).length == 2


GOOD = {"tasks": ["a"], "position": "suffix", "unseen": "error"}


@pytest.mark.parametrize(
    ("shapes", "config"),
    [
        ({"prompts.0": (2, 32), "prompts.1": (2, 32)}, GOOD),
        ({"prompts.1": (2, 32)}, GOOD),
        ({}, GOOD | {"tasks": []}),
        ({"prompts.0": (2, 32)}, GOOD | {"position": "middle"}),
        ({"prompts.0": (2, 32)}, GOOD | {"unseen": None}),
        ({"prompts.0": (2, 32)}, {}),
        ({"prompts.0": (2, 32), "prompts.1": (2, 32)}, GOOD | {"tasks": ["a", "a"]}),
        ({"prompts.0": (2, 32), "prompts.1": (3, 32)}, GOOD | {"tasks": ["a", "b"]}),
        ({"prompts.0": (2, 16)}, GOOD),
        ({"prompts.0": (32,)}, GOOD),
        ({"prompts.0": (2, 32)}, GOOD | {"tasks": ["a"], "position": ["suffix"]}),
        ({"prompts.0": (2, 32)}, GOOD | {"tasks": [""]}),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(tmp_path: Path, shapes: Any, config: Any) -> None:
    lm = toy_lm()
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    save_module(tmp_path, tensors, config, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        TaskPrompts.load(tmp_path, lm)
