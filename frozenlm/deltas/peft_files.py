"""LoRA, its relatives and (IA)3 in the files of the library `peft`: read what it wrote, write what it reads.

Two files: `adapter_config.json`, and `adapter_model.safetensors` with one tensor for each trained tensor, named
"base_model.model." + layer + tensor. Which layers are adapted is read off these names, so that patterns, lists and
"all-linear" in the config all come out alike. VeRA's file also holds the two random projections; they are drawn anew
from the config's key, and a file with others is refused. A file of peft does not say which weights it was trained for:
only layers and shapes are checked.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from frozenlm.checkpoint import atomic_write_bytes, atomic_write_json
from frozenlm.deltas.attach import Host, key, target_modules
from frozenlm.deltas.lora import ADAPTER, PeftDelta
from frozenlm.deltas.peft_methods import method_of
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompts.peft_format import CONFIG_NAME, WEIGHTS_NAME, check_finite, read_config, read_weights, task_type
from frozenlm.prompts.saved import fill_exactly

PREFIX = "base_model.model."
PROJECTIONS = ("vera_A", "vera_B")
TENSOR = re.compile(r"\.(lora_|hada_|lokr_|vera_lambda_|ia3_)")


def export_peft(delta: PeftDelta, folder: Path | str, lm: Host, *, base_name: str | None = None) -> None:
    """Writes the delta so that `PeftModel.from_pretrained(model, folder)` gives the same logits.

    base_name: path or hub id of the model, which peft records; None for the one it was loaded from

    Raises: ConfigError for a delta of another kind; CheckpointError for numbers that are not finite, or a folder that
        cannot be written.
    """
    if not isinstance(delta, PeftDelta):
        raise ConfigError(
            f"a {type(delta).__name__} has no form in peft's files; expected a PeftDelta (LoRA, its relatives, (IA)3)"
        )
    folder, config = Path(folder), delta.peft_config().to_dict()
    config |= {
        "peft_type": config["peft_type"].value,
        "task_type": task_type(lm),
        "base_model_name_or_path": base_name or lm.model.name_or_path,
        "inference_mode": True,
        **{name: sorted(value) for name, value in config.items() if isinstance(value, set)},
    }
    tensors = {PREFIX + name: tensor for name, tensor in delta.by_name().items()} | _projections(delta)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    for tensor in plain.values():
        check_finite(tensor, folder)
    atomic_write_bytes(folder / WEIGHTS_NAME, save(plain))
    atomic_write_json(folder / CONFIG_NAME, config)


def import_peft(folder: Path | str, lm: Host) -> PeftDelta:
    """The delta of a folder of peft.

    Raises: CheckpointError when a file is missing or damaged, of a method or with a setting that a frozen model cannot
        take, or does not fit the model.
    """
    folder = Path(folder)
    config, path = read_config(folder / CONFIG_NAME), folder / WEIGHTS_NAME
    try:
        method, settings = method_of(config)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_NAME} cannot be taken: {error}") from error
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in read_weights(folder).items()}
    projections = {name: tensors.pop(f"base_model.{name}") for name in PROJECTIONS if f"base_model.{name}" in tensors}
    for tensor in tensors.values():
        check_finite(tensor, path)
    try:
        targets = _targets(tensors, lm)
        meant = config.get("feedforward_modules") if method == "ia3" else None
        rescaled = [name for name in targets if _is_meant(name, meant)]
        delta = PeftDelta.around(lm.model, method, targets, rescaled_inputs=rescaled, settings=settings)
    except ConfigError as error:
        raise CheckpointError(f"{folder} does not fit this model: {error}") from error
    fill_exactly(delta, {f"tensors.{key(name)}": tensor.float() for name, tensor in tensors.items()}, path)
    ours = _projections(delta)
    for name, tensor in projections.items():
        mine = ours[f"base_model.{name}"].cpu().float()
        if mine.shape != tensor.shape or not torch.allclose(mine, tensor.float(), atol=1e-6):
            raise CheckpointError(
                f"{path}: {name} is not what projection_prng_key gives here; expected the projections of this key, as "
                "nothing but the trained vectors is kept; export the file anew with the same versions of torch and peft"
            )
    return delta


def _projections(delta: PeftDelta) -> dict[str, Tensor]:
    """VeRA's, which all its layers share."""
    if delta.method != "vera":
        return {}
    tuner = delta.tuner()
    return {f"base_model.{name}": getattr(tuner, name)[ADAPTER] for name in PROJECTIONS}


def _targets(tensors: Mapping[str, Tensor], lm: Host) -> list[str]:
    """The adapted layers, in the model's order.

    Raises: ConfigError for others than the dense layers of its blocks.
    """
    named = {TENSOR.split(name)[0] for name in tensors}
    dense = target_modules(lm.model)
    if strange := sorted(named - set(dense)):
        raise ConfigError(
            f"it adapts {', '.join(strange[:3])}; expected dense layers of the blocks, such as {dense[0]}; load the "
            "model it was trained for, or train it again without embeddings and heads"
        )
    if not named:
        raise ConfigError("it holds no tensor; expected those of at least one layer")
    return [name for name in dense if name in named]


def _is_meant(name: str, modules: Any) -> bool:
    """Whether peft's list of endings, or its pattern, means a layer.

    Raises: ConfigError for anything else.
    """
    try:
        if isinstance(modules, str):
            return re.fullmatch(modules, name) is not None
        return any(f".{name}".endswith(f".{module}") for module in modules or ())
    except (TypeError, re.error) as error:
        raise ConfigError(f"feedforward_modules is {modules!r}; expected endings of names, or a pattern") from error
