"""What training would take that learns about a prompting: soft slots, label vectors, or both, beside a frozen LM.

Only soft slots have a gradient go back through the LM, and so keep activations; label vectors need the answer's state.
"""

from __future__ import annotations

from frozenlm import cost as flops
from frozenlm.architectures import meta_model
from frozenlm.footprint import encoder_activations, prompt_activations, step_bytes, weight_bytes
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines.cost_prompting import learned_shapes
from pipelines.cost_types import Assumed
from pipelines.model_sizes import lm_dtype, model_config
from pipelines.plan import Plan, at_once, shown


def learned_prompt(config: c.PromptingJob, training: c.Loop, assumed: Assumed) -> list[Plan]:
    """Every question as long as the config allows, without demonstrations."""
    block, use = (config.lm, "lm") if config.lm is not None else (config.masked_lm, "encoder")
    found = model_config(block, "lm" if config.lm is not None else "masked_lm")
    dtype = lm_dtype(block, found)  # type: ignore[arg-type]
    model = meta_model(found, use, dtype=dtype)  # type: ignore[arg-type]
    shape = ModelShape.of_lm(model) if config.lm is not None else ModelShape.of_encoder(model)
    tokens = config.input.max_tokens if assumed.input_tokens is None else assumed.input_tokens
    shapes, kept = learned_shapes(config, shape.hidden_size), 0
    if "slots" in shapes and config.lm is not None:
        kept = prompt_activations(found, dtype=dtype, tokens=tokens, answer_tokens=1, length=0, remembered=False)
    elif "slots" in shapes:
        kept = encoder_activations(found, dtype=dtype, tokens=tokens, use="encoder")
    rows, forth = at_once(training), flops.encode(shape, tokens)
    if config.lm is not None:
        forth = flops.score(shape, tokens, 1).total
    trained = [one for part in shapes.values() for one in part]
    left_out = ["demonstrations"] * (config.prompting.demonstrations is not None)
    left_out += ["the further tokens of words that have several"] * (config.prompting.verbalizer == "words")
    return [
        Plan(
            module=config.prompting.name,
            trained_parameters=sum(rows * columns for rows, columns in trained),
            lm_parameters=shape.parameters,
            dtype=shown(dtype),
            loop=training,
            rows=rows,
            row_flops=forth * (2 if "slots" in shapes else 1),
            memory=step_bytes(
                frozen=weight_bytes(model), trained=trained, optimizer=training.optimizer, activations=rows * kept
            ),
            assumptions={"input_tokens": tokens} | ({"soft_words": "a token each"} if "slots" in shapes else {}),
            not_counted=left_out,
        )
    ]
