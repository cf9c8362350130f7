"""Soft prompts in the file format of the library `peft` (type PROMPT_TUNING): read what it wrote, write what it reads.

Two files: `adapter_config.json`, and `adapter_model.safetensors` with one tensor `prompt_embeddings`. peft always puts
the prompt before the text, so only prefix prompts fit. For encoder-decoder models peft stores P rows for the encoder
and P for the decoder by default but feeds only the first P to the LM; those are imported, and an export says so with
`num_transformer_submodules` 1. A peft file does not say which weights it was trained for: only its width is checked.
Shapes: P soft tokens, H hidden size.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save
from torch import Tensor

from frozenlm.checkpoint import MAX_JSON_BYTES, MAX_MAGNITUDE, atomic_write_bytes, atomic_write_json, read_safetensors
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompts.soft_prompt import SoftPrompt, check_width

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
TENSOR_NAME = "prompt_embeddings"
PEFT_TYPE = "PROMPT_TUNING"


def to_peft(prompt: SoftPrompt, folder: Path | str, lm: "FrozenLM", *, base_name: str) -> None:
    """Writes a prefix prompt so that `PeftModel.from_pretrained(model, folder)` gives the same logits.

    base_name: path or hub id of the LM, which peft records

    Raises: ConfigError for a suffix prompt; CheckpointError when the folder cannot be written.
    """
    if prompt.position != "prefix":
        raise ConfigError(
            f"peft puts a prompt before the text, this one has position {prompt.position!r}; "
            "export a prefix prompt, or keep this one in our own format"
        )
    write_vectors(prompt(), folder, lm, base_name=base_name, peft_type=PEFT_TYPE, prompt_tuning_init="RANDOM")


def from_peft(folder: Path | str, lm: "FrozenLM") -> SoftPrompt:
    """The prompt of a peft folder, as a prefix.

    Raises: CheckpointError when a file is missing or damaged, of another peft type, or does not fit the LM.
    """
    return SoftPrompt(read_vectors(folder, lm, peft_type=PEFT_TYPE), position="prefix")


def write_vectors(
    vectors: Tensor, folder: Path | str, lm: "FrozenLM", *, base_name: str, peft_type: str, **settings: Any
) -> None:
    """Writes [P, H] as the prompt of a peft type, with the settings that only this type has.

    Raises: CheckpointError for values that are not finite, or a folder that cannot be written.
    """
    length, hidden_size = vectors.shape
    config = {
        "peft_type": peft_type,
        "task_type": task_type(lm),
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "num_virtual_tokens": length,
        "token_dim": hidden_size,
        "num_transformer_submodules": 1,
        **settings,
    }
    folder, plain = Path(folder), vectors.detach().cpu().contiguous()
    check_finite(plain, folder)
    atomic_write_bytes(folder / WEIGHTS_NAME, save({TENSOR_NAME: plain}))
    atomic_write_json(folder / CONFIG_NAME, config)


def read_vectors(folder: Path | str, lm: "FrozenLM", *, peft_type: str) -> Tensor:
    """The prompt [P, H] of a peft folder of one type.

    Raises: CheckpointError when a file is missing or damaged, of another peft type, or does not fit the LM.
    """
    config_path, path = Path(folder) / CONFIG_NAME, Path(folder) / WEIGHTS_NAME
    config = read_config(config_path)
    kind, task, length = (config.get(name) for name in ("peft_type", "task_type", "num_virtual_tokens"))
    if kind != peft_type or task not in (task_type(lm), None):
        raise CheckpointError(
            f"{config_path}: peft_type is {kind!r} and task_type is {task!r}; expected {peft_type} for a "
            f"{task_type(lm)}"
        )
    tensors = read_weights(folder)
    if set(tensors) != {TENSOR_NAME}:
        raise CheckpointError(f"{path} holds {sorted(tensors)[:5]}; expected one tensor, {TENSOR_NAME!r}")
    rows = tensors[TENSOR_NAME]
    if rows.ndim != 2 or type(length) is not int or length < 1 or len(rows) % length:
        raise CheckpointError(
            f"{path}: {TENSOR_NAME} is {list(rows.shape)} for num_virtual_tokens {length!r}; expected {length} rows, "
            "or a multiple of it"
        )
    vectors = rows[:length].float()
    check_finite(vectors, path)
    check_width(vectors, lm, path)
    return vectors


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object of an `adapter_config.json`.

    Raises: CheckpointError when it is missing, a link, too long or not an object.
    """
    try:
        if path.is_symlink() or path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is a link or longer than {MAX_JSON_BYTES} bytes; expected a peft config")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); expected a peft folder with {CONFIG_NAME} and {WEIGHTS_NAME}"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}; expected a JSON object")
    return config


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """The tensors of a peft folder.

    Raises: CheckpointError when they are missing, damaged, or kept as pickle.
    """
    path = Path(folder) / WEIGHTS_NAME
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; save the adapter anew with peft, as safetensors (files of pickle, .bin, are never "
            "read)"
        )
    return read_safetensors(path)


def check_finite(vectors: Any, where: Path) -> None:
    """Refuses numbers that are not finite or too large.

    Raises: CheckpointError.
    """
    largest = float(vectors.float().abs().max()) if vectors.numel() else 0.0
    # `not <=` rather than `>`: NaN compares false with everything.
    if not largest <= MAX_MAGNITUDE:
        raise CheckpointError(f"{where}: the largest number is {largest}; expected finite ones up to {MAX_MAGNITUDE:g}")


def task_type(host: Any) -> str:
    """peft's word for what a host is."""
    kinds = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}
    return kinds.get(getattr(host, "kind", ""), "FEATURE_EXTRACTION")
