"""P-tuning in the file format of the library `peft` (type P_TUNING): read what it wrote, write what it reads.

peft too saves no prompt encoder, only the vectors that it writes, as one tensor `prompt_embeddings` beside
`adapter_config.json`, and puts them all before the text. So what goes out is the collapsed prompt of a module whose
slots are all in front of the text, and what comes in is one. For encoder-decoder models peft writes P rows for the
encoder and P for the decoder by default but feeds only the first P to the LM; those are imported. A peft file does not
say which weights it was trained for: only its width is checked. Shapes: P soft tokens, H hidden size.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from frozenlm.errors import ConfigError
from frozenlm.prompts.p_tuning import PTuning
from frozenlm.prompts.peft_format import read_vectors, write_vectors
from frozenlm.prompts.slots import SlottedPrompt

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

PEFT_TYPE = "P_TUNING"


def p_tuning_to_peft(prompt: PTuning | SlottedPrompt, folder: Path | str, lm: "FrozenLM", *, base_name: str) -> None:
    """Writes the vectors so that `PeftModel.from_pretrained(model, folder)` gives the same logits.

    base_name: path or hub id of the LM, which peft records

    Raises: ConfigError unless all vectors stand before the text; CheckpointError for values that are not finite, or a
        folder that cannot be written.
    """
    if prompt.position != "prefix":
        raise ConfigError(
            f"peft puts all soft tokens before the text, these stand in slots {prompt.slots.sizes}; export a module "
            "with slots (P, 0), or keep this one in our own format"
        )
    collapsed = prompt.collapse() if isinstance(prompt, PTuning) else prompt
    write_vectors(
        collapsed(),
        folder,
        lm,
        base_name=base_name,
        peft_type=PEFT_TYPE,
        encoder_reparameterization_type="MLP",  # of no effect: peft builds no encoder in inference mode
        encoder_hidden_size=collapsed.hidden_size,
    )


def p_tuning_from_peft(folder: Path | str, lm: "FrozenLM") -> SlottedPrompt:
    """The vectors of a peft folder, before the text.

    Raises: CheckpointError when a file is missing or damaged, of another peft type, or does not fit the LM.
    """
    vectors = read_vectors(folder, lm, peft_type=PEFT_TYPE)
    return SlottedPrompt(vectors, (len(vectors), 0))
