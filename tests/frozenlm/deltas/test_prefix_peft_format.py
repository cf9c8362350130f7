"""Prefixes in peft's files, compared with peft itself: equal logits on unpadded input, both ways."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from frozenlm.deltas.attach import attach
from frozenlm.deltas.p_tuning_v2 import PTuningV2
from frozenlm.deltas.prefix_initializers import random_numbers
from frozenlm.deltas.prefix_peft_format import prefix_from_peft, prefix_to_peft
from frozenlm.deltas.prefix_tuning import PrefixTuning
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.rows import Tokens
from tests.toys import DECODERS, toy_lm, toy_model

TEXT = [5, 9, 30, 31, 7, 12]


def ours(lm, delta) -> torch.Tensor:
    with torch.no_grad(), attach(lm, delta):
        return lm.forward([[Tokens.of(TEXT)]]).logits[0]


def theirs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([TEXT]), attention_mask=torch.ones(1, len(TEXT), dtype=torch.long)).logits[
            0
        ]


@pytest.mark.parametrize("name", DECODERS)
def test_exported_prefix_gives_the_same_logits_in_peft(tmp_path: Path, name: str) -> None:
    lm = toy_lm(name)
    delta = PrefixTuning.create(lm, 4, middle_size=8, init=random_numbers(1.0))
    prefix_to_peft(delta, tmp_path, lm, base_name="toy")
    model = peft.PeftModel.from_pretrained(toy_model(name), str(tmp_path)).eval()
    torch.testing.assert_close(ours(lm, delta), theirs(model), rtol=0, atol=2e-5)
    assert list(load_file(tmp_path / "adapter_model.safetensors")) == ["prompt_embeddings"]


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_prefix_saved_by_peft_gives_the_same_logits_here(tmp_path: Path, name: str, projection: bool) -> None:
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=projection, encoder_hidden_size=8
    )
    model = peft.get_peft_model(toy_model(name), config).eval()
    model.save_pretrained(str(tmp_path))
    lm = toy_lm(name)
    delta = prefix_from_peft(tmp_path, lm)
    assert delta.length == 4 and delta.position_offset
    torch.testing.assert_close(ours(lm, delta), theirs(model), rtol=0, atol=2e-5)


def test_there_and_back(tmp_path: Path) -> None:
    lm = toy_lm("llama")
    delta = PTuningV2.create(lm, 3)
    prefix_to_peft(delta, tmp_path, lm)
    assert torch.equal(prefix_from_peft(tmp_path, lm)()["decoder"], delta()["decoder"])


def test_what_has_no_form_in_peft(tmp_path: Path) -> None:
    lm, t5 = toy_lm(), toy_lm("t5")
    with pytest.raises(ConfigError, match="position_offset=False"):
        prefix_to_peft(PTuningV2.create(lm, 2, position_offset=False), tmp_path, lm)
    with pytest.raises(ConfigError, match="kind is encoder-decoder"):
        prefix_to_peft(PTuningV2.create(t5, 2), tmp_path, t5)
    with pytest.raises(ConfigError, match=r"kind is encoder-decoder.* cross-attention share numbers out of order"):
        prefix_from_peft(tmp_path, t5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING'"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type 'SEQ_2_SEQ_LM'"),
        ({"num_virtual_tokens": 3}, "num_virtual_tokens 3"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens None"),
    ],
)
def test_config_of_something_else(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    lm = toy_lm()
    prefix_to_peft(PTuningV2.create(lm, 2), tmp_path, lm)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        prefix_from_peft(tmp_path, lm)


@pytest.mark.parametrize(
    "tensors",
    [
        {"more": torch.zeros(2, 128)},
        {"prompt_embeddings": torch.zeros(2, 64)},
        {"prompt_embeddings": torch.full((2, 128), torch.nan)},
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    lm = toy_lm()
    prefix_to_peft(PTuningV2.create(lm, 2), tmp_path, lm)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        prefix_from_peft(tmp_path, lm)
