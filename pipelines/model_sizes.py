"""The models that a config names, without their weights: from a folder, from what a hub left in its cache, or from the
architecture that the config gives."""

from __future__ import annotations

from typing import Any

import torch

from frozenlm.architectures import config_from_fields, find_config, meta_model
from frozenlm.loading import DTYPES
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines.errors import ConfigError
from retrievers.compute import resolve_model


def model_config(block: Any, key: str, *, model: str | None = None) -> Any:
    """The transformers config of the model that a block names.

    Args:
        block: with `model`, `revision` and maybe `architecture`.
        key: what the block is called in a config file.
        model: instead of the block's own `model`.

    Raises:
        ConfigError: neither at hand nor given as an architecture, or an architecture that cannot be.
        CheckpointError: a folder whose config.json is missing or damaged.
    """
    name = model or block.model
    found = find_config(resolve_model(name), revision=block.revision)
    if found is not None:
        return found
    fields = getattr(block, "architecture", None)
    if fields is not None:
        return config_from_fields(fields)
    remedy = "name a local folder"
    if "architecture" in type(block).model_fields:
        remedy = f"give {key}.architecture (the fields of its config.json, model_type among them)"
    raise ConfigError(f"{key}: {name!r} is not at hand, so its size is unknown; {remedy}, or download it once")


def lm_shape(block: c.LM) -> ModelShape:
    """The frozen LM of a config.

    Raises:
        ConfigError, CheckpointError: as `model_config`; a kind of model whose cost cannot be told.
    """
    return ModelShape.of_lm(meta_model(model_config(block, "lm"), "lm"))


def encoder_shape(block: Any, key: str, *, model: str | None = None) -> ModelShape:
    """A text encoder; of an encoder-decoder, that half.

    Raises:
        ConfigError, CheckpointError: as `lm_shape`.
    """
    return ModelShape.of_encoder(meta_model(model_config(block, key, model=model), "encoder"))


def cross_encoder_shape(block: c.CrossEncoder) -> ModelShape:
    """A re-ranker with its head.

    Raises:
        ConfigError, CheckpointError: as `lm_shape`.
    """
    return ModelShape.of_encoder(meta_model(model_config(block, "reranker"), "cross_encoder"))


def lm_dtype(block: c.LM | c.FrozenEncoder, config: Any) -> torch.dtype:
    """What a frozen model's weights would be held in: `auto` is the checkpoint's dtype on a GPU, float32 on a CPU."""
    if block.dtype != "auto":
        return DTYPES[block.dtype]
    on_gpu = block.device.startswith("cuda") or (block.device == "auto" and torch.cuda.is_available())
    return getattr(config, "dtype", None) or torch.float32 if on_gpu else torch.float32
