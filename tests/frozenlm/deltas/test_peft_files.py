"""peft's files both ways: what we write peft reads, what peft writes we read, and the logits are the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from frozenlm.deltas.adapter import Adapter
from frozenlm.deltas.attach import attach
from frozenlm.deltas.lora import PeftDelta
from frozenlm.deltas.peft_files import export_peft, import_peft
from frozenlm.deltas.peft_methods import METHODS
from frozenlm.errors import CheckpointError, ConfigError
from tests.frozenlm.deltas.checks import logits, noisy
from tests.frozenlm.deltas.test_lora import made, plain_logits
from tests.toys import toy_encoder, toy_encoder_model, toy_lm, toy_model

PAIRS = [
    *((method, "llama") for method in METHODS),
    *(("lora", name) for name in ("gpt2", "opt", "t5")),
    *(("ia3", name) for name in ("gpt2", "t5", "bart")),
    ("dora", "gpt2"),
    ("vera", "bart"),
]


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_both_ways(tmp_path: Path, method: str, name: str) -> None:
    lm = toy_lm(name)
    delta = noisy(made(lm, method))
    export_peft(delta, tmp_path / "ours", lm, base_name=str(tmp_path))
    theirs = PeftModel.from_pretrained(toy_model(name), tmp_path / "ours").eval()
    with attach(lm, delta):
        ours = logits(lm)
        assert torch.equal(plain_logits(theirs), ours)
    theirs.save_pretrained(tmp_path / "theirs")
    back = import_peft(tmp_path / "theirs", lm)
    assert back.method == method and back.layers == delta.layers and back.rescaled_inputs == delta.rescaled_inputs
    with attach(lm, back):
        assert torch.equal(logits(lm), ours)
    assert (
        load_file(tmp_path / "ours/adapter_model.safetensors").keys()
        == load_file(tmp_path / "theirs/adapter_model.safetensors").keys()
    )


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules="all-linear", rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
        LoraConfig(r=2, target_modules=r".*\.1\..*_proj", use_dora=True, use_rslora=True),
        LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers"),
        IA3Config(),
    ],
    ids=["all-linear", "pattern", "one layer", "ia3"],
)
def test_peft_configs_of_every_form_are_read(tmp_path: Path, config: Any) -> None:
    theirs = noisy_peft(get_peft_model(toy_model("llama"), config))
    theirs.save_pretrained(tmp_path)
    lm = toy_lm("llama")
    with attach(lm, import_peft(tmp_path, lm)):
        assert torch.equal(logits(lm), plain_logits(theirs))


def noisy_peft(model: PeftModel) -> PeftModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def test_an_encoder_both_ways(tmp_path: Path) -> None:
    encoder = toy_encoder("bert")
    delta = noisy(made(encoder))
    export_peft(delta, tmp_path, encoder)
    theirs = PeftModel.from_pretrained(toy_encoder_model("bert"), tmp_path).eval()
    with attach(encoder, delta), attach(encoder):
        ids = torch.tensor([encoder.tokens(["who was king"])[0]])
        assert torch.equal(encoder.features(["who was king"])[0][0], theirs(input_ids=ids).last_hidden_state[0])
    assert torch.equal(
        import_peft(tmp_path, encoder).state_dict()["tensors." + next(iter(delta.tensors))],
        next(iter(delta.tensors.values())),
    )


def spoil(folder: Path, lm: Any, **changes: Any) -> Path:
    export_peft(made(lm), folder, lm, base_name=str(folder))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "OFT"}, "peft_type is 'OFT'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"init_lora_weights": "pissa"}, "the model stays as it is"),
        ({"init_lora_weights": "olora"}, "the model stays as it is"),
        ({"init_lora_weights": "loftq"}, "the model stays as it is"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"from_the_future": {"a": 1}}, "from_the_future"),
        ({"r": 5}, "load the LM"),
        ({"r": "many"}, "does not fit"),
        ({"rank_pattern": 5}, "does not fit"),
        ({"rank_pattern": {"(": 3}}, "does not fit"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf; expected a finite number"),
        ({"lora_dropout": 1.5}, r"lora_dropout is 1\.5; expected a share"),
    ],
)
def test_what_a_frozen_model_cannot_take_is_one_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    lm = toy_lm("llama")
    with pytest.raises(CheckpointError, match=message):
        import_peft(spoil(tmp_path, lm, **changes), lm)


def test_a_file_of_prompts_is_refused(tmp_path: Path) -> None:
    get_peft_model(toy_model("llama"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(
        tmp_path
    )
    with pytest.raises(CheckpointError, match="PROMPT_TUNING"):
        import_peft(tmp_path, toy_lm("llama"))


def test_layers_and_tensors_must_fit(tmp_path: Path) -> None:
    lm = toy_lm("llama")
    with pytest.raises(CheckpointError, match="it adapts"):
        import_peft(spoil(tmp_path / "a", lm), toy_lm("gpt2"))
    get_peft_model(toy_model("llama"), LoraConfig(target_modules=["lm_head", "q_proj"])).save_pretrained(tmp_path / "b")
    with pytest.raises(CheckpointError, match="it adapts lm_head"):
        import_peft(tmp_path / "b", lm)
    weights = spoil(tmp_path / "c", lm) / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, weights)
    with pytest.raises(CheckpointError, match="largest number is nan"):
        import_peft(tmp_path / "c", lm)
    save_file({}, weights)
    with pytest.raises(CheckpointError, match="holds no tensor"):
        import_peft(tmp_path / "c", lm)
    weights.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        import_peft(tmp_path / "c", lm)
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_peft(tmp_path / "nowhere", lm)


@pytest.mark.parametrize("modules", [5, "(", {"a": 1}, [["down_proj"]]])
def test_which_inputs_ia3_rescales_is_read_or_refused(tmp_path: Path, modules: Any) -> None:
    lm = toy_lm("llama")
    export_peft(made(lm, "ia3"), tmp_path, lm)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "feedforward_modules": modules}))
    with pytest.raises(CheckpointError, match=r"feedforward_modules is|load the LM"):
        import_peft(tmp_path, lm)


def test_a_file_of_pickle_is_never_read(tmp_path: Path) -> None:
    lm = toy_lm("llama")
    (spoil(tmp_path, lm) / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"as safetensors \(files of pickle"):
        import_peft(tmp_path, lm)


def test_numbers_of_eight_bits_are_read(tmp_path: Path) -> None:
    lm = toy_lm("llama")
    path = spoil(tmp_path, lm) / "adapter_model.safetensors"
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()}
    save_file(small, path)
    for name, tensor in import_peft(tmp_path, lm).by_name().items():
        assert torch.equal(tensor, small[f"base_model.model.{name}"].float())


def test_projections_of_another_key_are_refused(tmp_path: Path) -> None:
    lm = toy_lm("llama")
    export_peft(made(lm, "vera"), tmp_path, lm)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "projection_prng_key": 7}))
    with pytest.raises(CheckpointError, match="projection_prng_key"):
        import_peft(tmp_path, lm)


def test_only_peft_methods_are_exported(tmp_path: Path) -> None:
    lm = toy_lm()
    with pytest.raises(ConfigError, match="no form in peft's files"):
        export_peft(Adapter.create(lm), tmp_path, lm)  # type: ignore[arg-type]


def test_an_imported_delta_is_saved_and_loaded(tmp_path: Path) -> None:
    lm = toy_lm("llama")
    config = LoraConfig(r=4, target_modules="all-linear", rank_pattern={"q_proj": 2})
    noisy_peft(get_peft_model(toy_model("llama"), config)).save_pretrained(tmp_path / "theirs")
    delta = import_peft(tmp_path / "theirs", lm)
    delta.save(tmp_path / "ours", lm)
    with attach(lm, delta):
        expected = logits(lm)
    with attach(lm, PeftDelta.load(tmp_path / "ours", lm)):
        assert torch.equal(logits(lm), expected)
