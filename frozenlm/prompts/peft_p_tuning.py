"""P-tuning in the file format of the library `peft` (type P_TUNING): read what it wrote, write what it reads.

peft too saves no prompt encoder, only the vectors that it writes, as one tensor `prompt_embeddings` beside
`adapter_config.json`, and puts them all before the text. So what goes out is the collapsed prompt of a module whose
slots are all in front of the text, and what comes in is one. For encoder-decoder models peft writes P rows for the
encoder and P for the decoder by default but feeds only the first P to the LM; those are imported. A peft file does not
say which weights it was trained for: only its width is checked. Shapes: P soft tokens, H hidden size.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from frozenlm.checkpoint import atomic_write_bytes, atomic_write_json, read_safetensors
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompts.p_tuning import PTuning
from frozenlm.prompts.peft_format import CONFIG_NAME, TENSOR_NAME, WEIGHTS_NAME, check_finite, read_config
from frozenlm.prompts.slots import SlottedPrompt
from frozenlm.prompts.soft_prompt import check_width

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

PEFT_TYPE = "P_TUNING"


def p_tuning_to_peft(prompt: PTuning | SlottedPrompt, folder: Path | str, lm: "FrozenLM", *, base_name: str) -> None:
    """Writes the vectors so that `PeftModel.from_pretrained(model, folder)` gives the same logits.

    base_name: path or hub id of the LM, which peft records

    Raises: ConfigError unless all vectors stand before the text; CheckpointError for values that are not finite, or a
        folder that cannot be written.
    """
    from safetensors.torch import save

    if prompt.position != "prefix":
        raise ConfigError(
            f"peft puts all soft tokens before the text, these stand in slots {prompt.slots.sizes}; export a module "
            "with slots (P, 0), or keep this one in our own format"
        )
    collapsed = prompt.collapse() if isinstance(prompt, PTuning) else prompt
    config = {
        "peft_type": PEFT_TYPE,
        "task_type": "SEQ_2_SEQ_LM" if lm.kind == "encoder-decoder" else "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "num_virtual_tokens": collapsed.length,
        "token_dim": collapsed.hidden_size,
        "num_transformer_submodules": 1,
        "encoder_reparameterization_type": "MLP",  # of no effect: peft builds no encoder in inference mode
        "encoder_hidden_size": collapsed.hidden_size,
    }
    vectors = collapsed.vectors.detach().cpu().contiguous()
    folder = Path(folder)
    check_finite(vectors, folder)
    atomic_write_bytes(folder / WEIGHTS_NAME, save({TENSOR_NAME: vectors}))
    atomic_write_json(folder / CONFIG_NAME, config)


def p_tuning_from_peft(folder: Path | str, lm: "FrozenLM") -> SlottedPrompt:
    """The vectors of a peft folder, before the text.

    Raises: CheckpointError when a file is missing or damaged, of another peft type, or does not fit the LM.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG_NAME)
    expected = "SEQ_2_SEQ_LM" if lm.kind == "encoder-decoder" else "CAUSAL_LM"
    found = config.get("peft_type"), config.get("task_type")
    if found[0] != PEFT_TYPE or found[1] not in (expected, None):
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: peft_type and task_type are {found}; expected {PEFT_TYPE} for a {expected}"
        )
    path = folder / WEIGHTS_NAME
    tensors = read_safetensors(path)
    rows, length = tensors.get(TENSOR_NAME), config.get("num_virtual_tokens")
    if set(tensors) != {TENSOR_NAME} or rows is None or type(length) is not int or length < 1:
        raise CheckpointError(
            f"{path} holds {sorted(tensors)[:5]} for num_virtual_tokens {length!r}; expected {TENSOR_NAME!r} alone"
        )
    if rows.ndim != 2 or not len(rows) or len(rows) % length:
        raise CheckpointError(
            f"{path}: {TENSOR_NAME} is {list(rows.shape)}; expected {length} rows, or a multiple of it"
        )
    vectors = rows[:length].float()
    check_finite(vectors, path)
    check_width(vectors, lm, path)
    return SlottedPrompt(vectors, (length, 0))
