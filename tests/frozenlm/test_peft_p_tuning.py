"""P-tuning in peft's files, compared with peft itself: one file, equal logits on unpadded input."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.lm import FrozenLM
from frozenlm.prompts.interface import PromptInput, prompted
from frozenlm.prompts.p_tuning import PTuning
from frozenlm.prompts.peft_p_tuning import p_tuning_from_peft, p_tuning_to_peft
from frozenlm.prompts.slots import SlottedPrompt
from frozenlm.rows import Tokens
from tests.toys import toy_lm, toy_model

TEXT = [5, 9, 30, 31, 7, 12]
ANSWER = [40, 41, 42]
LMS = ("gpt2", "opt", "llama", "t5", "bart")


def ours(lm: FrozenLM, prompt: Any) -> torch.Tensor:
    rows = prompted(prompt, [[Tokens.of(TEXT)]], [PromptInput()])
    if lm.kind == "decoder":
        return lm.forward(rows).logits[0]
    return lm.forward(rows, decoder_rows=[[Tokens.of([*lm.start_ids, *ANSWER])]]).logits[0]


def theirs(model: Any, lm: FrozenLM) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([TEXT]), "attention_mask": torch.ones(1, len(TEXT), dtype=torch.long)}
    if lm.kind == "decoder":
        return model(**inputs).logits[0, -len(TEXT) :]
    return model(**inputs, decoder_input_ids=torch.tensor([[*lm.start_ids, *ANSWER]])).logits[0]


def module(lm: FrozenLM) -> PTuning:
    return PTuning.create(lm, (4, 0), anchor=False, seed=1)


@pytest.mark.parametrize("name", LMS)
def test_exported_vectors_give_the_same_logits_in_peft(tmp_path: Path, name: str) -> None:
    lm = toy_lm(name)
    p_tuning_to_peft(module(lm), tmp_path, lm, base_name="toy")
    model = peft.PeftModel.from_pretrained(toy_model(name), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(lm, module(lm)), theirs(model, lm), rtol=0, atol=1e-5)
    assert list(load_file(tmp_path / "adapter_model.safetensors")) == ["prompt_embeddings"]


@pytest.mark.parametrize("name", LMS)
@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_p_tuning_saved_by_peft_gives_the_same_logits_here(tmp_path: Path, name: str, encoder: str) -> None:
    lm = toy_lm(name)
    task = "SEQ_2_SEQ_LM" if lm.kind == "encoder-decoder" else "CAUSAL_LM"
    config = peft.PromptEncoderConfig(
        task_type=task, num_virtual_tokens=4, encoder_reparameterization_type=encoder, encoder_hidden_size=12
    )
    model = peft.get_peft_model(toy_model(name), config).eval()
    model.save_pretrained(str(tmp_path))
    prompt = p_tuning_from_peft(tmp_path, lm)
    assert prompt.slots.sizes == (4, 0)
    with torch.no_grad():
        torch.testing.assert_close(ours(lm, prompt), theirs(model, lm), rtol=0, atol=1e-5)


def test_there_and_back(tmp_path: Path) -> None:
    lm = toy_lm()
    p_tuning_to_peft(module(lm).collapse(), tmp_path, lm, base_name="toy")
    assert torch.equal(p_tuning_from_peft(tmp_path, lm)(), module(lm)())


@pytest.mark.parametrize("slots", [(0, 4), (2, 2)])
def test_other_slots_do_not_fit_the_format(tmp_path: Path, slots: tuple[int, int]) -> None:
    lm = toy_lm()
    with pytest.raises(ConfigError, match=r"export a module with slots \(P, 0\)"):
        p_tuning_to_peft(SlottedPrompt.create(lm, slots), tmp_path, lm, base_name="toy")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    p_tuning_to_peft(module(toy_lm()), tmp_path, toy_lm(), base_name="toy")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING' and task_type is 'CAUSAL_LM'"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "expected P_TUNING for a CAUSAL_LM"),
        ({"num_virtual_tokens": 3}, "expected 3 rows"),
        ({"num_virtual_tokens": "4"}, "num_virtual_tokens '4'"),
    ],
)
def test_config_that_does_not_fit(exported: Path, change: dict[str, Any], words: str) -> None:
    path = exported / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        p_tuning_from_peft(exported, toy_lm())


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe"])
def test_damaged_config(exported: Path, content: bytes) -> None:
    (exported / "adapter_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        p_tuning_from_peft(exported, toy_lm())


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora_A": torch.zeros(4, 32)},
        {"prompt_embeddings": torch.zeros(4)},
        {"prompt_embeddings": torch.zeros(4, 16)},
        {"prompt_embeddings": torch.full((4, 32), float("inf"))},
    ],
)
def test_weights_that_do_not_fit(exported: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, exported / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        p_tuning_from_peft(exported, toy_lm())
