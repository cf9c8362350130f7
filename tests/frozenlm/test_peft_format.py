"""Import from and export to peft, compared with peft itself: one file, equal logits on unpadded input."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.lm import FrozenLM
from frozenlm.prompts.peft_format import from_peft, to_peft
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Tokens
from tests.toys import PAD, toy_lm, toy_model

TEXT = [5, 9, 30, 31, 7, 12]
ANSWER = [40, 41, 42]


def random_prompt(length: int = 4) -> SoftPrompt:
    vectors = torch.randn(length, 32, generator=torch.Generator().manual_seed(1))
    return SoftPrompt(vectors, position="prefix")


def ours(lm: FrozenLM, prompt: SoftPrompt) -> torch.Tensor:
    rows = [prompt.place([Tokens.of(TEXT)])]
    if lm.kind == "decoder":
        return lm.forward(rows).logits[0]
    return lm.forward(rows, decoder_rows=[[Tokens.of([*lm.start_ids, *ANSWER])]]).logits[0]


def theirs(model: Any, lm: FrozenLM) -> torch.Tensor:
    inputs: dict[str, torch.Tensor] = {
        "input_ids": torch.tensor([TEXT]),
        "attention_mask": torch.ones(1, len(TEXT), dtype=torch.long),
    }
    if lm.kind == "decoder":
        return model(**inputs).logits[0, -len(TEXT) :]
    return model(**inputs, decoder_input_ids=torch.tensor([[*lm.start_ids, *ANSWER]])).logits[0]


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "t5", "bart"])
def test_exported_prompt_gives_the_same_logits_in_peft(tmp_path: Path, name: str) -> None:
    lm, prompt = toy_lm(name), random_prompt()
    to_peft(prompt, tmp_path, lm, base_name="toy")
    model = peft.PeftModel.from_pretrained(toy_model(name), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(lm, prompt), theirs(model, lm), rtol=0, atol=1e-5)
    assert list(load_file(tmp_path / "adapter_model.safetensors")) == ["prompt_embeddings"]


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "t5", "bart"])
def test_prompt_saved_by_peft_gives_the_same_logits_here(tmp_path: Path, name: str) -> None:
    lm = toy_lm(name)
    task = "SEQ_2_SEQ_LM" if lm.kind == "encoder-decoder" else "CAUSAL_LM"
    model = peft.get_peft_model(toy_model(name), peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4)).eval()
    model.save_pretrained(str(tmp_path))
    prompt = from_peft(tmp_path, lm)
    assert prompt.position == "prefix" and prompt.length == 4
    with torch.no_grad():
        torch.testing.assert_close(ours(lm, prompt), theirs(model, lm), rtol=0, atol=1e-5)


def test_there_and_back(tmp_path: Path) -> None:
    lm, prompt = toy_lm(), random_prompt()
    to_peft(prompt, tmp_path, lm, base_name="toy")
    assert torch.equal(from_peft(tmp_path, lm)(), prompt())


def test_suffix_prompts_do_not_fit_the_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suffix"):
        to_peft(SoftPrompt(torch.zeros(2, 32)), tmp_path, toy_lm(), base_name="toy")
    assert not list(tmp_path.iterdir())


def test_non_finite_prompts_are_not_exported(tmp_path: Path) -> None:
    prompt = random_prompt()
    with torch.no_grad():
        prompt.vectors[1, 1] = float("nan")
    with pytest.raises(CheckpointError, match="nan"):
        to_peft(prompt, tmp_path, toy_lm(), base_name="toy")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    to_peft(random_prompt(), tmp_path, toy_lm(), base_name="toy")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM'"),
        ({"num_virtual_tokens": 3}, "num_virtual_tokens 3"),
        ({"num_virtual_tokens": "4"}, "num_virtual_tokens '4'"),
    ],
)
def test_config_that_is_not_a_soft_prompt(exported: Path, change: dict[str, Any], words: str) -> None:
    path = exported / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        from_peft(exported, toy_lm())


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file_is_named(exported: Path, name: str) -> None:
    (exported / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        from_peft(exported, toy_lm())


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_config(exported: Path, content: bytes) -> None:
    (exported / "adapter_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        from_peft(exported, toy_lm())


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora_A": torch.zeros(4, 32)},
        {"prompt_embeddings": torch.zeros(4, 32), "more": torch.zeros(1)},
        {"prompt_embeddings": torch.zeros(4)},
        {"prompt_embeddings": torch.zeros(4, 16)},
        {"prompt_embeddings": torch.full((4, 32), float("inf"))},
        {"prompt_embeddings": torch.full((4, 32), 1e9)},
    ],
)
def test_weights_that_do_not_fit(exported: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, exported / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        from_peft(exported, toy_lm())


def test_pickled_weights_are_never_read(exported: Path) -> None:
    weights = exported / "adapter_model.safetensors"
    torch.save(load_file(weights), exported / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        from_peft(exported, toy_lm())


def test_padding_changes_nothing_here() -> None:
    """In peft soft tokens stand before left padding; here they touch the text on either side."""
    lm, prompt = toy_lm(), random_prompt()
    short, long = [prompt.place([Tokens.of(ids)]) for ids in ([5, 6], [7, 8, 9, 10, PAD])]
    with torch.no_grad():
        alone = lm.forward([short]).logits[0]
        torch.testing.assert_close(lm.forward([short, long]).logits[0], alone, rtol=0, atol=1e-5)
