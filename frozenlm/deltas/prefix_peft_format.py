"""Attention prefixes in the file format of the library `peft` (type PREFIX_TUNING): read what it wrote, write what it
reads.

Two files: `adapter_config.json`, and `adapter_model.safetensors` with one tensor `prompt_embeddings` [P, L * 2 * K * D]
(of a layer: keys, then values), which peft's network has been collapsed into. peft counts the prefix as P tokens, so it
is `position_offset` here. For encoder-decoders peft cuts one such tensor so that the layers of self- and
cross-attention share numbers out of order; those files are not read, and none is written.
Shapes: P prefix, L attention layers, K key-value heads, D head size.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save

from frozenlm.attention_places import places
from frozenlm.checkpoint import atomic_write_bytes, atomic_write_json
from frozenlm.deltas.p_tuning_v2 import PTuningV2
from frozenlm.deltas.prefix_tuning import PrefixTuning
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompts.peft_format import CONFIG_NAME, TENSOR_NAME, WEIGHTS_NAME, check_finite, read_config, read_weights

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM


def prefix_to_peft(
    delta: PrefixTuning | PTuningV2, folder: Path | str, lm: "FrozenLM", *, base_name: str | None = None
) -> None:
    """Writes the prefix of a decoder-only LM so that `PeftModel.from_pretrained(model, folder)` gives the same logits.

    base_name: path or hub id of the LM, which peft records; None for the one it was loaded from

    Raises: ConfigError for an encoder-decoder or an encoder, or a prefix without `position_offset`; CheckpointError for
        numbers that are not finite, or a folder that cannot be written.
    """
    kind = getattr(lm, "kind", "encoder")
    if kind != "decoder" or not delta.position_offset:
        reason = "this prefix has position_offset=False" if kind == "decoder" else f"this model's kind is {kind}"
        raise ConfigError(
            f"peft's form of a prefix is for decoder-only LMs and counts it as tokens, but {reason}; keep it in our "
            "own format"
        )
    prefix = delta()["decoder"].detach().cpu()
    layers, _, length, heads, size = prefix.shape
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name if base_name is not None else lm.model.name_or_path,
        "inference_mode": True,
        "num_virtual_tokens": length,
        "token_dim": heads * size,
        "num_attention_heads": heads,
        "num_layers": layers,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": heads * size,
        "prefix_projection": False,
    }
    folder = Path(folder)
    check_finite(prefix, folder)
    flat = prefix.permute(2, 0, 1, 3, 4).flatten(1).contiguous()
    atomic_write_bytes(folder / WEIGHTS_NAME, save({TENSOR_NAME: flat}))
    atomic_write_json(folder / CONFIG_NAME, config)


def prefix_from_peft(folder: Path | str, lm: "FrozenLM") -> PrefixTuning:
    """The prefix of a peft folder, trained itself from here on.

    Raises: ConfigError for an encoder-decoder; CheckpointError when a file is missing or damaged, of another peft type,
        or does not fit the LM.
    """
    if lm.kind != "decoder":
        raise ConfigError(
            f"this model's kind is {lm.kind}, and prefixes of peft's are read for decoder-only LMs: of "
            "encoder-decoders its file lets the layers of self- and cross-attention share numbers out of order; train "
            "one here"
        )
    folder = Path(folder)
    config = read_config(folder / CONFIG_NAME)
    kind, task, length = (config.get(name) for name in ("peft_type", "task_type", "num_virtual_tokens"))
    if kind != "PREFIX_TUNING" or task not in ("CAUSAL_LM", None):
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: peft_type is {kind!r} and task_type {task!r}; expected PREFIX_TUNING "
            "for CAUSAL_LM"
        )
    path, sizes = folder / WEIGHTS_NAME, places(lm.model)["decoder"]
    tensors = read_weights(folder)
    width = 2 * sizes.count * sizes.heads * sizes.head_size
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if type(length) is not int or length < 1 or found != {TENSOR_NAME: [length, width]}:
        raise CheckpointError(
            f"{path} holds {dict(list(found.items())[:5])} for num_virtual_tokens {length!r}; this LM takes "
            f"{TENSOR_NAME} of [that many, {width}]; load the LM it was trained for"
        )
    flat = tensors[TENSOR_NAME].float()
    check_finite(flat, path)
    prefix = flat.view(length, sizes.count, 2, sizes.heads, sizes.head_size).permute(1, 2, 0, 3, 4)
    return PrefixTuning({"decoder": prefix}, position_offset=True)
