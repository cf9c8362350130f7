"""What a config of kind `classification` computes: a frozen encoder, with a delta or without, and a linear head."""

from __future__ import annotations

from frozenlm import cost as flops
from frozenlm.architectures import meta_model
from frozenlm.encoder import LENGTH_WITHOUT_LIMIT
from frozenlm.shapes import ModelShape
from frozenlm.task_heads import head_parameter_count
from pipelines import config as c
from pipelines.config_deltas import PrefixTuning, PTuningV2
from pipelines.config_tasks import task_spec
from pipelines.cost_deltas import delta_sizes, with_delta
from pipelines.cost_types import Assumed, Component, Cost
from pipelines.errors import ConfigError
from pipelines.model_sizes import model_config


def classification(config: c.Classification, assumed: Assumed) -> Cost:
    """Of one text; without assumed tokens the longest that the config allows.

    Raises:
        ConfigError: a model that is not at hand, a task without a verbalizer, or a delta that does not fit.
    """
    model = meta_model(model_config(config.encoder, "encoder"), "encoder")
    shape = ModelShape.of_encoder(model)
    tokens, width = text_tokens(config, shape, assumed.input_tokens), model.config.hidden_size
    alone, labels = flops.encode(shape, tokens), len(label_names(config))
    found = Cost(lm=shape, one_pass=alone)
    found.components["encoder"] = Component(alone, shape.parameters)
    if config.delta is not None:
        sizes = delta_sizes(config.delta, model)
        added = flops.encode(with_delta(config.delta, model, shape), tokens) - alone
        found.components["delta"] = Component(added, sizes.served, sizes.trained)
        found.not_counted += sizes.not_counted
    head = head_parameter_count(width, labels)
    found.components["head"] = Component(2 * width * labels, head, head)
    found.assumptions["input_tokens"] = tokens
    return found


def text_tokens(config: c.Classification, shape: ModelShape, input_tokens: int | None) -> int:
    """Tokens of a text: those asked for, or else the most that the encoder reads.

    Raises:
        ConfigError: more than it reads, or a prefix that leaves no room.
    """
    taken = config.delta.length if isinstance(config.delta, PrefixTuning | PTuningV2) else 0
    taken = taken if getattr(config.delta, "position_offset", False) else 0
    limits = [config.encoder.max_length, None if shape.window is None else shape.window - taken]
    most = min((limit for limit in limits if limit is not None), default=LENGTH_WITHOUT_LIMIT)
    if shape.window is not None and shape.window <= taken:
        raise ConfigError(
            f"a prefix of {taken} leaves no room for a text in the encoder's {shape.window} positions; shorten it"
        )
    if input_tokens is not None and input_tokens > most:
        raise ConfigError(f"{input_tokens} tokens of input do not fit: the encoder reads {most}; assume fewer")
    return most if input_tokens is None else input_tokens


def label_names(config: c.Classification) -> tuple[str, ...]:
    """The labels of the task; nothing is read.

    Raises:
        ConfigError: they are not fixed by the config.
    """
    words = task_spec(config.task).words
    if words is None:
        raise ConfigError(f"task {config.task.name!r} has no verbalizer, so how many labels it has is not known")
    return words.choices
