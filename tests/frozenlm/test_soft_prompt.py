"""The soft prompt as a module, as a piece of a row, and as files."""

from pathlib import Path

import pytest
import torch

from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.prompts.initializers import from_text, uniform
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Soft, Tokens
from tests.toys import toy_lm


def ramp(rows: int = 3, width: int = 32) -> torch.Tensor:
    return torch.arange(rows * width, dtype=torch.float32).view(rows, width) / 100


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_exactly_p_times_h_parameters(name: str) -> None:
    prompt = SoftPrompt.create(toy_lm(name), 7)
    assert sum(p.numel() for p in prompt.parameters()) == 7 * 32
    assert list(prompt.state_dict()) == ["vectors"]


def test_parameters_are_float32_over_a_bfloat16_lm() -> None:
    from frozenlm.lm import FrozenLM
    from tests.toys import toy_model, toy_tokenizer

    lm = FrozenLM.from_model(toy_model("llama"), toy_tokenizer(), dtype="bfloat16")
    prompt = SoftPrompt.create(lm, 4)
    assert prompt.vectors.dtype == torch.float32
    loss = -lm.token_logprobs([prompt.place([Tokens.of([5, 6])])], [[7]])[0].sum()
    loss.backward()
    assert prompt.vectors.grad is not None and prompt.vectors.grad.dtype == torch.float32


def test_place() -> None:
    text = Tokens.of([5, 6])
    before = SoftPrompt(ramp(), position="prefix").place([text])
    behind = SoftPrompt(ramp()).place([text])
    assert isinstance(before[0], Soft) and before[1] is text
    assert behind[0] is text and isinstance(behind[1], Soft)


def test_starting_vectors_are_copied() -> None:
    vectors = ramp()
    prompt = SoftPrompt(vectors)
    with torch.no_grad():
        prompt.vectors.zero_()
    assert vectors[0, 1] == 0.01


def test_init_decides_where_it_begins() -> None:
    lm = toy_lm()
    text = SoftPrompt.create(lm, 2, init=from_text("cat dog"))
    assert torch.equal(text(), lm.embed(torch.tensor(lm.encode("cat dog"))))
    assert SoftPrompt.create(lm, 50, init=uniform(0.1))().abs().max() <= 0.1


@pytest.mark.parametrize(
    ("vectors", "position", "error", "words"),
    [
        (torch.zeros(3), "suffix", ShapeError, r"\[3\]"),
        (torch.zeros(0, 4), "suffix", ShapeError, r"\[0, 4\]"),
        (torch.full((2, 4), float("nan")), "suffix", ConfigError, "NaN or Inf"),
        (torch.zeros(2, 4), "middle", ConfigError, "middle"),
    ],
)
def test_bad_arguments(vectors: torch.Tensor, position: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        SoftPrompt(vectors, position=position)  # type: ignore[arg-type]


def test_bad_length_and_bad_initialiser() -> None:
    lm = toy_lm()
    with pytest.raises(ConfigError, match="length 0"):
        SoftPrompt.create(lm, 0)
    with pytest.raises(ShapeError, match=r"\[2, 32\]"):
        SoftPrompt.create(lm, 3, init=lambda lm, length, generator: torch.zeros(2, 32))


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_saved_and_loaded(tmp_path: Path, position: str) -> None:
    lm = toy_lm()
    prompt = SoftPrompt(ramp(), position=position)  # type: ignore[arg-type]
    prompt.save(tmp_path, lm)
    again = SoftPrompt.load(tmp_path, lm)
    assert torch.equal(again(), prompt()) and again.position == position
    assert lm.fingerprint in (tmp_path / "module.json").read_text()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_another_lm_is_refused_by_default(tmp_path: Path) -> None:
    SoftPrompt(ramp()).save(tmp_path, toy_lm(seed=0))
    other = toy_lm(seed=1)
    with pytest.raises(CheckpointError, match="another LM"):
        SoftPrompt.load(tmp_path, other)
    assert torch.equal(SoftPrompt.load(tmp_path, other, allow_other_lm=True)(), ramp())


def test_another_width_is_refused_always(tmp_path: Path) -> None:
    SoftPrompt(ramp(width=16)).save(tmp_path, toy_lm())
    with pytest.raises(CheckpointError, match=r"\[3, 16\]"):
        SoftPrompt.load(tmp_path, toy_lm())


def test_non_finite_vectors_are_not_saved(tmp_path: Path) -> None:
    prompt = SoftPrompt(ramp())
    with torch.no_grad():
        prompt.vectors[0, 0] = float("inf")
    with pytest.raises(CheckpointError):
        prompt.save(tmp_path, toy_lm())


def test_another_kind_is_refused(tmp_path: Path) -> None:
    from frozenlm.checkpoint import save_module

    lm = toy_lm()
    save_module(tmp_path, {"vectors": ramp()}, {"position": "suffix"}, lm_fingerprint=lm.fingerprint, kind="connector")
    with pytest.raises(CheckpointError, match="connector"):
        SoftPrompt.load(tmp_path, lm)


def test_settings_without_a_position_are_refused(tmp_path: Path) -> None:
    from frozenlm.checkpoint import save_module

    lm = toy_lm()
    save_module(tmp_path, {"vectors": ramp()}, {}, lm_fingerprint=lm.fingerprint, kind="soft_prompt")
    with pytest.raises(CheckpointError, match="position"):
        SoftPrompt.load(tmp_path, lm)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_every_flipped_byte_is_found(tmp_path: Path, suffix: str) -> None:
    lm = toy_lm()
    SoftPrompt(ramp(2)).save(tmp_path, lm)
    path = next(path for path in tmp_path.iterdir() if path.suffix == suffix)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            again = SoftPrompt.load(tmp_path, lm)
        except CheckpointError:
            continue
        # White space between JSON values is the only thing that may change unseen, and it changes nothing.
        assert suffix == ".json" and torch.equal(again(), ramp(2))
