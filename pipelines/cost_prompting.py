"""What a config of kind `prompting` computes for one question: every template read once, behind its demonstrations."""

from __future__ import annotations

from frozenlm import cost as flops
from frozenlm.prompting.learned_verbalizers import PROTOTYPE_WIDTH
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines.build_prompting import label_words
from pipelines.config_prompting import Contextual, soft_slots, sources
from pipelines.cost_types import Assumed, Component, Cost
from pipelines.errors import ConfigError
from pipelines.model_sizes import encoder_shape, lm_shape


def prompting(config: c.PromptingJob, assumed: Assumed) -> Cost:
    """Of one question; without assumed tokens the longest that the config allows.

    Demonstrations are taken to be as long as their budget, or else each as the question, as far as the window allows. A
    decoder-only LM reads those that are the same for all questions once, and so they cost a question its attention to
    them alone. What is asked about nothing is asked once, too, unless it stands behind demonstrations that differ.

    Raises:
        ConfigError: a model that is not at hand, or more tokens than the LM reads.
    """
    block = config.prompting
    lm, window = _shape(config)
    tokens = config.input.max_tokens if assumed.input_tokens is None else assumed.input_tokens
    if window is not None and assumed.input_tokens is None:
        tokens = min(tokens, window)
    if window is not None and tokens > window:
        raise ConfigError(f"{tokens} tokens of input do not fit: the LM reads {window}; assume fewer")
    shown = block.demonstrations
    before = 0 if shown is None else shown.budget or shown.k * tokens
    before = before if window is None else min(before, window - tokens)
    nearest = shown is not None and shown.choose == "nearest"
    once = before > 0 and not nearest and lm.kind == "decoder"
    templates = len(sources(block, config.task))
    each = lm.body.at(tokens, before=before) + lm.head if once else _read(lm, tokens + before)
    found = Cost(lm=lm, one_pass=_read(lm, tokens))
    found.components["questions"] = Component(templates * each, lm.parameters)
    if learned := learned_shapes(config, lm.hidden_size):
        numbers = sum(rows * columns for part in learned.values() for rows, columns in part)
        found.components["learned"] = Component(0, numbers, numbers)
    calibration = block.calibration
    if calibration is not None and calibration.demonstrations and nearest:
        blanks = len(calibration.texts) if isinstance(calibration, Contextual) else 1
        found.components["calibration"] = Component(templates * blanks * each)
    if nearest and config.encoder is not None:
        reader = encoder_shape(config.encoder, "encoder")
        read = min(tokens, config.encoder.max_length or tokens)
        found.components["encoder"] = Component(flops.encode(reader, read, texts=templates), reader.parameters)
    found.assumptions |= {"input_tokens": tokens, "demonstration_tokens": before, "templates": templates}
    found.assumptions["demonstrations_read_once"] = once
    found.not_counted += ["the further tokens of words that have several"] if block.pieces == "logprob" else []
    found.not_counted += ["the masked LM's head"] if config.lm is None else []
    return found


def learned_shapes(config: c.PromptingJob, width: int) -> dict[str, list[tuple[int, int]]]:
    """Shapes of what is learned, by part; nothing where nothing is. A soft slot that begins at words has a vector for
    each of them, taken to be a token.

    Args:
        width: of the LM's embeddings.
    """
    block, found = config.prompting, dict[str, list[tuple[int, int]]]()
    source, *_ = sources(block, config.task)
    if slots := soft_slots(source, "template"):
        found["slots"] = [(slot.length or len((slot.init or "one").split()), width) for slot in slots.values()]
    labels = 0 if block.verbalizer == "words" else len(label_words(config.task))
    if block.verbalizer == "soft":
        found["verbalizer"] = [(labels, width)]
    elif block.verbalizer == "prototypical":
        found["verbalizer"] = [(width, PROTOTYPE_WIDTH), (labels, PROTOTYPE_WIDTH)]
    return found


def _shape(config: c.PromptingJob) -> tuple[ModelShape, int | None]:
    """The LM, and the most tokens that it reads."""
    if config.lm is not None:
        shape = lm_shape(config.lm)
        return shape, config.lm.window or shape.window
    shape = encoder_shape(config.masked_lm, "masked_lm")
    return shape, shape.window


def _read(lm: ModelShape, tokens: int) -> int:
    return flops.encode(lm, tokens) if lm.kind == "encoder" else flops.score(lm, tokens, 1).total
