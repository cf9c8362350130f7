"""ATTEMPT: the mixture it makes, what decides its weights, and what it carries along."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from frozenlm.checkpoint import load_module, save_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.prompts.attempt import KIND, Attempt
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.task_prompts import TaskPrompts
from tests.toys import toy_lm

INPUTS = [PromptInput("the cat sat on the mat", "a"), PromptInput("paris", "b"), PromptInput("", "a")]


def flat(value: float) -> Tensor:
    return torch.full((2, 32), float(value))


def mixture(sources: list[Tensor], target: Tensor, query: dict[int, float]) -> Attempt:
    """One whose query vector is `query` (feature -> value, else 0) whatever the input."""
    lm = toy_lm()
    module = Attempt(lm, torch.stack(sources), TaskPrompts({"any": target}, unseen="mean"))
    with torch.no_grad():
        module.norm.weight.zero_()
        for feature, value in query.items():
            module.norm.bias[feature] = value
    return module


def test_a_query_of_zero_mixes_evenly_and_the_target_counts_again() -> None:
    module = mixture([flat(1), flat(4)], flat(7), query={})
    assert torch.allclose(module.weights(INPUTS), torch.full((3, 3), 1 / 3))
    # 7 + (1 + 4 + 7) / 3
    assert torch.allclose(module(INPUTS), torch.full((3, 2, 32), 11.0))


def test_weights_are_a_softmax_of_the_largest_value_in_each_column_of_a_prompt() -> None:
    wanted = flat(0)
    wanted[1, 3] = math.log(2)  # the second of its two rows has it
    module = mixture([wanted, flat(0)], flat(-1), query={3: 1.0})
    module.targets.prompts[0].data[0, 3] = 0
    module.temperature = 1.0
    # exp(log 2), exp(0), exp(0) over their sum
    assert torch.allclose(module.weights(INPUTS[:1]), torch.tensor([[0.5, 0.25, 0.25]]))
    module.temperature = 1e6
    assert torch.allclose(module.weights(INPUTS[:1]), torch.full((1, 3), 1 / 3), atol=1e-5)


def test_the_query_is_a_normalised_bottleneck_of_the_pooled_embeddings() -> None:
    lm = toy_lm()
    module = Attempt.create(lm, [flat(1)], width=3, seed=2)
    pooled = lm.embed(torch.tensor(lm.encode("the cat"))).amax(dim=0)
    hidden = pooled @ module.down
    up = (hidden * torch.sigmoid(hidden)) @ module.up  # SiLU
    query = (up - up.mean()) / (up.var(unbiased=False) + 1e-5).sqrt()
    scores = torch.stack([query.sum() * 1, query @ module.targets.prompts[0].amax(dim=0)]) / (32 * math.e)
    assert torch.allclose(module.weights([PromptInput("the cat")])[0], scores.softmax(dim=0), atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_pooling_takes_the_largest_embedding_of_the_texts_own_tokens(name: str) -> None:
    lm = toy_lm(name)
    module = Attempt.create(lm, [flat(1)])
    texts = ["the cat sat", "paris", "", "sat cat the"]
    found = module.pooled(texts)
    for row, text in zip(found[:2], texts[:2], strict=True):
        assert torch.equal(row, lm.embed(torch.tensor(lm.encode(text))).amax(dim=0))
    assert not found[2].any()
    assert torch.equal(found[0], found[3])
    module(INPUTS)
    assert (module.pooled.computed, module.pooled.found) == (5, 2)  # one of INPUTS is new


def test_a_text_without_a_token_mixes_evenly_at_the_start() -> None:
    module = Attempt.create(toy_lm(), [flat(1), flat(5)], temperature=1.0)
    assert torch.allclose(module.weights([PromptInput("")]), torch.full((1, 3), 1 / 3))
    assert torch.allclose(module.weights(INPUTS).sum(dim=1), torch.ones(3))


def test_one_network_and_a_target_a_task() -> None:
    lm = toy_lm()
    module = Attempt.create(lm, [flat(1), flat(4)], tasks=["a", "b"], width=5)
    assert sum(p.numel() for p in module.parameters()) == 2 * 32 * 5 + 2 * 32 + 2 * (2 * 32)
    assert Attempt.parameter_count(hidden_size=32, length=2, width=5, tasks=2) == 2 * 32 * 5 + 2 * 32 + 2 * (2 * 32)
    with torch.no_grad():
        module.targets.prompts[1].fill_(2.0)
    found = module([PromptInput("cat", "a"), PromptInput("cat", "b")])
    assert not torch.allclose(found[0], found[1])
    with pytest.raises(ConfigError, match="'a', 'b'"):
        module([PromptInput("cat", "c")])
    assert Attempt.create(lm, [flat(1)], tasks=["a", "b"], unseen="mean")([PromptInput("cat", "c")]).shape == (1, 2, 32)


def test_one_target_for_every_input_without_tasks() -> None:
    module = Attempt.create(toy_lm(), [flat(1)], width=5)
    found = module([PromptInput("cat", "a"), PromptInput("cat", None)])
    assert torch.allclose(found[0], found[1])
    assert sum(p.numel() for p in module.parameters()) == Attempt.parameter_count(hidden_size=32, length=2, width=5)


def test_sources_are_copied_and_frozen() -> None:
    lm = toy_lm()
    source = SoftPrompt.create(lm, 2, seed=4)
    module = Attempt.create(lm, [source, flat(1)])
    with torch.no_grad():
        source.vectors.zero_()
    assert module.sources[0].any() and not module.sources.requires_grad
    assert "sources" in module.state_dict() and "sources" not in dict(module.named_parameters())
    assert module.temperature == pytest.approx(32 * math.e)


@pytest.mark.parametrize(
    ("sources", "settings", "error", "words"),
    [
        ([], {}, ConfigError, "no source"),
        ([flat(1), torch.ones(3, 32)], {}, ShapeError, r"\[3, 32\]"),
        ([torch.ones(32)], {}, ShapeError, r"\[32\]"),
        ([torch.ones(2, 16)], {}, ShapeError, r"\[1, 2, 16\]; expected \[S, 2, 32\]"),
        ([flat(1)], {"length": 3}, ShapeError, "length 3 from sources of length 2"),
        ([flat(1)], {"width": 0}, ConfigError, "width is 0"),
        ([flat(1)], {"temperature": 0.0}, ConfigError, "temperature 0"),
        ([flat(1)], {"temperature": math.inf}, ConfigError, "temperature inf"),
        ([flat(math.nan)], {}, ConfigError, "NaN"),
        ([flat(1)], {"position": "middle"}, ConfigError, "'middle'"),
        ([flat(1)], {"tasks": []}, ConfigError, "at least one name"),
        ([SoftPrompt(flat(1), position="prefix")], {}, ConfigError, "not trained in suffix position"),
    ],
)
def test_bad_arguments(sources: Any, settings: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Attempt.create(toy_lm(), sources, **settings)


def saved(lm: FrozenLM, folder: Path) -> Attempt:
    module = Attempt.create(lm, [flat(1), flat(4)], tasks=["a", "b"], width=5, temperature=3.0, position="prefix")
    module.save(folder, lm)
    return module


def test_the_checkpoint_carries_the_sources(tmp_path: Path) -> None:
    lm = toy_lm()
    module = saved(lm, tmp_path)
    tensors, config = load_module(tmp_path, kind=KIND)
    assert set(tensors) == {
        *("sources", "down", "up", "norm.weight", "norm.bias", "targets.prompts.0", "targets.prompts.1")
    }
    assert config["tasks"] == ["a", "b"] and config["temperature"] == 3.0
    again = Attempt.load(tmp_path, lm)
    assert torch.equal(again.sources, module.sources)
    assert torch.equal(again(INPUTS), module(INPUTS))
    assert (again.temperature, again.position, again.length) == (3.0, "prefix", 2)


@pytest.mark.parametrize(
    "change",
    [
        {"sources": None},
        {"up": None},
        {"extra": (2, 2)},
        {"targets.prompts.1": None},
        {"sources": (2, 3, 32)},
        {"sources": (0, 2, 32)},
        {"down": (16, 5)},
        {"down": (32,)},
        {"down": (32, 0)},
        {"norm.bias": (31,)},
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    lm = toy_lm()
    saved(lm, tmp_path)
    tensors, config = load_module(tmp_path, kind=KIND)
    tensors |= {name: torch.ones(shape) for name, shape in change.items() if shape is not None}
    kept = {name: tensor for name, tensor in tensors.items() if change.get(name, ()) is not None}
    save_module(tmp_path, kept, config, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Attempt.load(tmp_path, lm)


@pytest.mark.parametrize("temperature", [None, "3", 0, -1.0, True])
def test_a_file_with_an_impossible_temperature_is_refused(tmp_path: Path, temperature: Any) -> None:
    lm = toy_lm()
    saved(lm, tmp_path)
    tensors, config = load_module(tmp_path, kind=KIND)
    changed = config | {"temperature": temperature}
    save_module(tmp_path, tensors, changed, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Attempt.load(tmp_path, lm)
