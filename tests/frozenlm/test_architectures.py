"""Models without weights: where their configs come from, what is refused, that nothing is allocated."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, T5Config

from frozenlm.architectures import config_from_fields, find_config, meta_model, pretended_model
from frozenlm.errors import CheckpointError, ConfigError
from tests.toys import toy_model

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
SEVEN_B = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
SEVEN_B |= {"intermediate_size": 11008, "vocab_size": 32000}


def test_seven_billion_parameters_take_no_memory() -> None:
    meta_model(config_from_fields(LLAMA), "lm")  # the code of the architecture is read here
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = meta_model(config_from_fields(SEVEN_B), "lm")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_738_415_616  # LLaMA-7B's
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 100_000_000


def test_known_sizes() -> None:
    t5_base = T5Config(d_model=768, num_layers=12, num_heads=12, d_kv=64, d_ff=3072, vocab_size=32128)
    whole, half = meta_model(t5_base, "lm"), meta_model(t5_base, "encoder")
    bert_base = meta_model(BertConfig(), "encoder")
    counts = [sum(p.numel() for p in model.parameters()) for model in (whole, half, bert_base)]
    assert counts == [222_903_552, 109_628_544, 109_482_240]


def test_a_folder_s_own_config(tmp_path: Path) -> None:
    toy_model("opt").config.save_pretrained(tmp_path / "opt")
    assert find_config(tmp_path / "opt").model_type == "opt"
    assert find_config("nobody/has-this-model") is None
    (tmp_path / "opt" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load the config of"):
        find_config(tmp_path / "opt")
    (tmp_path / "opt" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        find_config(tmp_path / "opt")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "needs a model_type"),
        ({"model_type": "lama"}, "transformers knows no model_type 'lama'"),
        ({**LLAMA, "hiden_size": 32}, "has no config field hiden_size; it has"),
        ({**LLAMA, "hidden_size": "many"}, "this llama architecture cannot be"),
        ({**LLAMA, "hidden_size": 30}, "not a multiple of the number of attention heads"),
    ],
)
def test_fields_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config_from_fields(fields)


def test_a_whole_config_json_is_taken_as_fields() -> None:
    config = toy_model("llama").config
    again = config_from_fields(config.to_dict())
    assert (again.hidden_size, again.num_key_value_heads, again.vocab_size) == (32, 2, 128)


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'bert' model, which does not generate text"):
        meta_model(BertConfig(), "lm")


def test_a_cross_encoder_has_one_number_and_the_config_stays() -> None:
    config = BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, intermediate_size=64)
    assert meta_model(config, "cross_encoder").classifier.out_features == 1
    assert config.num_labels == 2


def test_a_pretended_model_has_a_place_but_no_numbers() -> None:
    with pretended_model(config_from_fields(SEVEN_B), "lm", dtype=torch.bfloat16) as model:
        weight = model.lm_head.weight
        assert (weight.device.type, weight.dtype, weight.nbytes) == ("cpu", torch.bfloat16, 2 * 32000 * 4096)
