"""How many bytes a training step keeps, known without weights.

Weights, gradients and optimizer state are counted. Activations are an estimate: a forward pass over a few tokens is
pretended (`architectures.pretended_model`) and the tensors that autograd saves for the backward pass are added up, each
storage once, weights left out. As FLOPs do, they grow as a polynomial in the tokens (`shapes.Growth`). The logits
of the positions that are scored are added by hand. Left out: what a kernel needs for a moment, padding, the allocator's
slack. A frozen LM keeps less than a trained one, since only a gradient of weights needs a layer's input.
Shapes: T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from frozenlm.architectures import pretended_model
from frozenlm.errors import ConfigError
from frozenlm.shapes import Growth, Measure, crossing_growth, measured, model_growth, read

FLOAT32 = 4  # bytes
LOGITS = 3  # float32 matrices [T, V] beside the head's own output: its copy, the log-softmax, the gradient


@dataclass(frozen=True)
class StepBytes:
    """Bytes that one training step holds at its fullest.

    frozen: weights of the LM, and of an encoder
    trained, gradients, optimizer: of what is trained, float32
    activations: an estimate; see the module's docstring
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


def step_bytes(*, frozen: int, trained: Sequence[Sequence[int]], optimizer: str, activations: int) -> StepBytes:
    """The parts of a step whose trained tensors have these shapes.

    frozen, activations: bytes
    trained: the shape of each trained tensor
    optimizer: "adamw" or "adafactor"

    Raises: ConfigError for another optimizer.
    """
    weights = FLOAT32 * sum(prod(shape) for shape in trained)
    state = FLOAT32 * sum(_optimizer_state(shape, optimizer) for shape in trained)
    return StepBytes(frozen, weights, weights, state, activations)


def _optimizer_state(shape: Sequence[int], optimizer: str) -> int:
    """Numbers kept for a tensor: AdamW two a parameter; Adafactor one a row and one a column of a matrix."""
    if optimizer == "adamw":
        return 2 * prod(shape)
    if optimizer == "adafactor":
        return prod(shape[:-1]) + prod([*shape[:-2], shape[-1]]) if len(shape) > 1 else prod(shape)
    raise ConfigError(f"optimizer is {optimizer!r}; expected adamw or adafactor")


def weight_bytes(model: Any) -> int:
    """Bytes of a model's weights in its own dtype, a tied one counted once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def prompt_activations(
    config: Any, *, dtype: torch.dtype, tokens: int, answer_tokens: int, length: int, remembered: bool
) -> int:
    """Bytes kept for one row through a frozen LM beside which a soft prompt is trained.

    config: the LM's
    tokens: of the text
    remembered: the text is read first, without gradient, and its keys and values are gone on from: a suffix prompt of a
        decoder-only LM

    Raises: ConfigError when the model cannot be run without its weights.
    """
    with pretended_model(config, "lm", dtype=dtype) as model:
        table = model.get_input_embeddings()
        table.weight.requires_grad_(True)  # the prompt's place: everything after the embeddings depends on it
        kept = kept_by(model)
        logits = answer_tokens * table.num_embeddings * (LOGITS * FLOAT32 + model.dtype.itemsize)
        if config.is_encoder_decoder:
            encoded = tokens + length
            decoder, crossing = crossing_growth(model, kept)
            crossed = (crossing.memory + crossing.pair * answer_tokens) * encoded
            return model_growth(model.get_encoder(), kept).at(encoded) + decoder.at(answer_tokens) + crossed + logits
        body = model_growth(model.base_model, kept)
        if not remembered:
            return body.at(tokens + length + answer_tokens - 1) + logits
        return (
            body.at(length + answer_tokens - 1, before=tokens) + tokens * _memory(model.base_model, kept, body) + logits
        )


def encoder_activations(
    config: Any, *, dtype: torch.dtype, tokens: int, use: Literal["encoder", "cross_encoder"] = "cross_encoder"
) -> int:
    """Bytes kept for one text through a cross-encoder that is trained itself, or a frozen encoder with learned vectors
    in front of the text.

    Raises: ConfigError as `prompt_activations`.
    """
    with pretended_model(config, use, dtype=dtype) as model:
        if use == "encoder":
            model.get_input_embeddings().weight.requires_grad_(True)
        else:
            model.requires_grad_(True)
        return model_growth(model, kept_by(model)).at(tokens)


def kept_by(model: Any) -> Measure:
    """Adds up what autograd saves in a call, the model's own tensors left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def measure(run: Callable[[], Any]) -> int:
        storages: dict[int, Any] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage
            return tensor.detach()  # the tensor itself would hold the graph that holds it

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run()
        return sum(storage.nbytes() for address, storage in storages.items() if address not in own)

    return measure


def _memory(body: Any, kept: Measure, own: Growth) -> int:
    """Bytes for each token of a memory: its keys and values, and the copies of them that attention keeps."""
    held, copies = [], []
    for before in (2, 3):
        cache = DynamicCache()
        with torch.no_grad():
            measured(kept, partial(read, body, before, cache=cache))
        layers: Any = cache.layers
        held.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))
        copies.append(measured(kept, partial(read, body, 2, cache=cache, before=before)))
    return held[1] - held[0] + copies[1] - copies[0] - 2 * own.pair
