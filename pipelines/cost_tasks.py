"""What a frozen LM for a mixture of tasks costs: the LM alone, and what a prompt method or a delta adds to it."""

from __future__ import annotations

from frozenlm import cost as flops
from frozenlm.architectures import meta_model
from frozenlm.prompts.idpg import IDPG
from frozenlm.prompts.input_dependent_sizes import Sizes
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines import model_sizes
from pipelines.cost_deltas import delta_sizes, with_delta
from pipelines.cost_prompts import trained_numbers
from pipelines.cost_types import Assumed, Component, Cost
from pipelines.errors import ConfigError
from pipelines.tasks.encoding import input_room


def multitask(config: c.Multitask, assumed: Assumed) -> Cost:
    """Of kind `multitask`."""
    found, lm = Cost(), model_sizes.lm_shape(config.lm)
    tokens = config.input.max_tokens if assumed.input_tokens is None else assumed.input_tokens
    answer = config.generation.max_new_tokens if assumed.answer_tokens is None else assumed.answer_tokens
    check_room(config, lm)
    block, beams = config.prompt, config.generation.num_beams
    found.read_by_lm(lm, tokens, answer, beams=beams, soft_tokens=0)
    if config.delta is not None:
        model = meta_model(model_sizes.model_config(config.lm, "lm"), "lm")
        sizes, tuned = delta_sizes(config.delta, model), with_delta(config.delta, model, lm)
        added = flops.generate(tuned, tokens, answer, beams=beams).total - found.flops
        found.components["delta"] = Component(added, sizes.served, sizes.trained)
        found.not_counted += sizes.not_counted
    if block is None:
        return found
    found.assumptions["soft_tokens"] = block.length
    size = block.length * lm.hidden_size
    trained, writing = size, 0
    if isinstance(block, c.PromptPerTask):
        trained = len(config.tasks) * size
    elif isinstance(block, c.Attempt):
        network = 2 * lm.hidden_size * block.width
        trained = network + 2 * lm.hidden_size + (len(config.tasks) if block.per_task else 1) * size
        writing = 2 * network + 2 * (len(block.sources) + 1) * size
    elif isinstance(block, c.InputDependent | c.IDPG):
        trained, writing = _written(found, config, block, lm, tokens)
    elif isinstance(block, c.PTuning | c.LowRank | c.AutoEncoder | c.Intrinsic):
        trained = trained_numbers(block, lm.hidden_size)
    beside = flops.soft_tokens(lm, tokens, answer, block.length, beams=beams)
    found.components["prompt"] = Component(writing, trained, trained)
    found.components["prompt_in_lm"] = Component(beside)
    return found


def check_room(config: c.Multitask, lm: ModelShape) -> None:
    """As a training does, but for control tokens around an input, which only a tokenizer knows.

    Raises:
        ConfigError: no room for an input beside the answer and what stands beside both.
    """
    beside = [getattr(one, "length", 0) for one in (config.trained, *config.modules)]
    sizes = config.input.model_dump(include={"max_tokens", "keep_end", "answer_tokens"})
    input_room(lm.kind, config.lm.window or lm.window, **sizes, soft_tokens=max(beside))


def _written(
    found: Cost, config: c.Multitask, block: c.InputDependent | c.IDPG, lm: ModelShape, tokens: int
) -> tuple[int, int]:
    """Trained parameters of a prompt generator and its FLOPs; its frozen encoder is added to what is found."""
    if config.encoder is None:
        raise ConfigError(f"prompt {block.name!r} of kind {block.kind} needs an encoder block")
    encoder = model_sizes.encoder_shape(config.encoder, "encoder")
    read = min(tokens, config.encoder.max_length or tokens)
    found.assumptions["encoder_tokens"] = read
    if isinstance(block, c.IDPG):
        found.components["encoder"] = Component(flops.encode(encoder, read), encoder.parameters)
        sizes = {"encoder_size": encoder.hidden_size, "hidden_size": lm.hidden_size, "length": block.length}
        count = IDPG.parameter_count(**sizes, bottleneck=block.bottleneck, phm=block.phm)
        # A PHM layer is counted as the plain one; the 2 n^2 a number in its input that it costs more are left out.
        return count, 2 * block.bottleneck * (encoder.hidden_size + block.length * lm.hidden_size)
    own = block.model_dump(exclude={"kind", "name", "position", "init"})
    shape = Sizes(hidden_size=lm.hidden_size, encoder_size=encoder.hidden_size, **own)
    read += shape.encoder_prompt
    found.components["encoder"] = Component(flops.encode(encoder, read), encoder.parameters)
    return shape.parameters, flops.prompt_writer(shape).at(read)
