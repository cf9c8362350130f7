"""IDPG: its arithmetic, its count, where it begins, and the encoder it belongs to."""

from pathlib import Path
from typing import Any

import pytest
import torch

from frozenlm.checkpoint import load_module, save_module
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.idpg import IDPG, KIND
from frozenlm.prompts.initializers import from_text
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.prompts.text_vectors import TextVectors
from tests.toys import toy_encoder, toy_lm

TEXTS = [PromptInput("the cat sat on the mat"), PromptInput("paris"), PromptInput("")]


def fill(module: IDPG, **values: Any) -> IDPG:
    """Sets parameters and buffers to given numbers."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(torch.as_tensor(value, dtype=torch.float32))
    return module


def test_the_prompt_is_a_bottleneck_of_the_vector_on_top_of_a_prompt_for_all() -> None:
    module = IDPG(toy_encoder(), torch.full((2, 3), 10.0), bottleneck=2)
    down = torch.zeros(1, 24, 2)
    down[0, 4] = torch.tensor([2.0, -1.0])  # looks at feature 4 only
    up = torch.stack([torch.arange(6.0), torch.full((6,), 100.0)]).unsqueeze(0)
    fill(module, down=down, bias=[1, 0], up=up)
    module.vectors = TextVectors(lambda texts: torch.ones(len(texts), 24))
    # hidden = relu(2 + 1), relu(-1 + 0) = 3, 0; so 10 + 3 x [[0, 1, 2], [3, 4, 5]] + 0 x 100
    assert module([PromptInput("a")])[0].tolist() == [[10, 13, 16], [19, 22, 25]]


def test_a_phm_layer_is_a_sum_of_kronecker_products() -> None:
    module = IDPG(toy_encoder(), torch.zeros(2, 32), bottleneck=8, phm=4)
    draw = torch.Generator().manual_seed(1)
    fill(module, **{name: torch.randn(p.shape, generator=draw) for name, p in module.named_parameters()})
    assert module.rule is not None
    down = sum(torch.kron(a, b) for a, b in zip(module.rule, module.down, strict=True))
    up = sum(torch.kron(a, b) for a, b in zip(module.rule, module.up, strict=True))
    vectors = module.encoder.vectors([one.text for one in TEXTS])
    expected = module.prompt + (torch.relu(vectors @ down + module.bias) @ up).view(3, 2, 32)
    assert torch.allclose(module(TEXTS), expected, atol=1e-3)


def test_counts_of_the_paper() -> None:
    setting = {"encoder_size": 1024, "hidden_size": 1024, "length": 5, "bottleneck": 256}
    # two matrices 1024 x 256 and 256 x 5120, b, W0
    assert IDPG.parameter_count(**setting) == 262_144 + 1_310_720 + 256 + 5_120 == 1_578_240
    # the matrices / 16, sixteen shared 16 x 16, b, W0: the paper's 105K, in units of 1,024
    assert IDPG.parameter_count(**setting, phm=16) == 98_304 + 4_096 + 256 + 5_120 == 107_776
    assert 107_776 // 1024 == 105


@pytest.mark.parametrize("phm", [1, 2, 4, 8])
def test_counts_are_what_is_trained(phm: int) -> None:
    module = IDPG.create(toy_lm(), toy_encoder(), 3, bottleneck=16, phm=phm)
    formula = IDPG.parameter_count(encoder_size=24, hidden_size=32, length=3, bottleneck=16, phm=phm)
    assert sum(p.numel() for p in module.parameters()) == formula
    assert {name for name, _ in module.named_parameters()} == {"prompt", "down", "bias", "up"} | (
        {"rule"} if phm > 1 else set()
    )


@pytest.mark.parametrize("phm", [1, 4])
def test_it_begins_as_the_soft_prompt_of_the_same_seed(phm: int) -> None:
    lm = toy_lm()
    module = IDPG.create(lm, toy_encoder(), 3, init=from_text("cat dog"), phm=phm, seed=5)
    start = SoftPrompt.create(lm, 3, init=from_text("cat dog"), seed=5)
    assert all(torch.equal(vectors, start()) for vectors in module(TEXTS))
    again = IDPG.create(lm, toy_encoder(), 3, phm=phm, seed=5)
    other = IDPG.create(lm, toy_encoder(), 3, phm=phm, seed=6)
    assert torch.equal(module.down, again.down) and not torch.equal(module.down, other.down)


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_the_vector_is_the_frozen_encoders_and_is_read_once(name: str) -> None:
    encoder = toy_encoder(name)
    module = IDPG.create(toy_lm(), encoder, 2)
    assert torch.equal(module.vectors([one.text for one in TEXTS]), encoder.vectors([one.text for one in TEXTS]))
    for _ in range(3):
        module(TEXTS)
    assert (module.vectors.computed, module.vectors.found) == (3, 9)
    assert not any("encoder" in key for key in module.state_dict())


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "words"),
    [
        (torch.zeros(3), {}, ShapeError, r"\[3\]"),
        (torch.zeros(2, 4), {"position": "middle"}, ConfigError, "'middle'"),
        (torch.zeros(2, 4), {"bottleneck": 0}, ConfigError, "bottleneck is 0"),
        (torch.zeros(2, 4), {"phm": 0}, ConfigError, "phm 0"),
        (torch.zeros(2, 5), {"phm": 4}, ConfigError, "phm 4 does not divide length x hidden size 10"),
        (torch.zeros(2, 4), {"phm": 4, "bottleneck": 6}, ConfigError, "bottleneck 6"),
        (torch.zeros(1, 16), {"phm": 16}, ConfigError, "encoder's size 24"),
    ],
)
def test_bad_arguments(prompt: Any, settings: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        IDPG(toy_encoder(), prompt, **settings)


@pytest.mark.parametrize("phm", [1, 4])
def test_another_encoder_is_refused(tmp_path: Path, phm: int) -> None:
    lm = toy_lm()
    IDPG.create(lm, toy_encoder(seed=0), 2, phm=phm).save(tmp_path, lm)
    with pytest.raises(CheckpointError, match="another encoder"):
        IDPG.load(tmp_path, lm, toy_encoder(seed=1))
    with pytest.raises(CheckpointError, match="another encoder"):
        IDPG.load(tmp_path, lm, toy_encoder("bert"), allow_other_lm=True)


@pytest.mark.parametrize(
    "change",
    [
        {"up": None},
        {"prompt": None},
        {"extra": (2, 2)},
        {"up": (1, 16, 65)},
        {"down": (1, 25, 16)},
        {"prompt": (2, 16)},
        {"rule": (2, 2, 2)},
        {"down": ()},
        {"bias": (3, 3)},
        {"down": (5, 5, 5)},
        {"down": (1, 24, 0)},
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    lm, encoder = toy_lm(), toy_encoder()
    IDPG.create(lm, encoder, 2).save(tmp_path, lm)
    tensors, config = load_module(tmp_path, kind=KIND)
    tensors |= {name: torch.ones(shape) for name, shape in change.items() if shape is not None}
    kept = {name: tensor for name, tensor in tensors.items() if change.get(name, ()) is not None}
    save_module(tmp_path, kept, config, lm_fingerprint=lm.fingerprint, kind=KIND)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        IDPG.load(tmp_path, lm, encoder)
