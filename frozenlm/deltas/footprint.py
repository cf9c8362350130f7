"""What a training step with a delta keeps and computes, known without weights.

Unlike a soft prompt behind the text, a delta changes what every layer does, so the forward pass over the whole text
keeps what the backward pass needs; a layer whose weights a delta makes keeps its input and those weights too. Neither
is told by a formula: the delta (`outline.py`) is attached to a model without weights, a step is run with as many rows
and tokens as asked for, and what autograd saves is added up (with the attention kernel of a CPU), or the matrix
products forth and back are counted (on the meta device). Left out, as in `frozenlm.footprint`: what a kernel needs for
a moment, padding, the allocator's slack; of what is trained, only its place in the graph is counted, not itself.
Shapes: B rows, T tokens of text, A tokens of the answer, V vocabulary, E width of an encoder's output, C labels.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.architectures import Use, pretended_model
from frozenlm.deltas.outline import on_cpu
from frozenlm.footprint import FLOAT32, LOGITS, kept_by
from frozenlm.shapes import count_flops, measured

Run = Callable[[Any], Tensor]
"""(the model) -> logits."""


def read_and_answer(model: Any, *, rows: int, tokens: int, answer_tokens: int) -> Tensor:
    """[B, A, V]: an LM over texts and answers, its head where an answer's token is predicted."""
    head = model.get_output_embeddings()
    if not model.config.is_encoder_decoder:
        return head(_states(model.base_model, rows, tokens + answer_tokens - 1)[:, -answer_tokens:])
    encoded = _states(model.get_encoder(), rows, tokens)
    return head(_states(model.get_decoder(), rows, answer_tokens, encoder_hidden_states=encoded))


def read_and_label(model: Any, *, rows: int, tokens: int, head: Any) -> Tensor:
    """[B, C]: an encoder over texts, and a `ClassificationHead` behind it."""
    hidden = _states(model, rows, tokens).float()
    return head(hidden, torch.ones(rows, tokens, dtype=torch.bool, device=hidden.device))


def kept_bytes(
    config: Any, use: Use, run: Run, *, dtype: torch.dtype, delta: Any, head: nn.Module | None = None
) -> int:
    """Bytes kept for the backward pass of one step, logits and what the loss makes of them among them.

    config: of the frozen model, in `dtype`
    delta: from `outlined`, or None; it and the head are of no more use after this

    Raises: ConfigError when the model cannot be run without its weights.
    """
    trained = nn.ModuleList([part for part in (delta, head) if part is not None])
    with pretended_model(config, use, dtype=dtype) as model:
        on_cpu(trained)
        outputs: list[Tensor] = []

        def step() -> None:
            with _attached(delta, model):
                outputs.append(run(model))
            if hasattr(delta, "penalty"):
                outputs.append(delta.penalty())

        kept = measured(kept_by(nn.ModuleList([model, trained])), step)
        return kept + outputs[0].numel() * (LOGITS * FLOAT32 + outputs[0].element_size())


def step_flops(model: Any, run: Run, *, delta: Any) -> int:
    """FLOPs of one step forth and back, the weights that a delta makes among them.

    model: on the meta device

    Raises: ConfigError when it cannot be run without its weights.
    """
    return measured(count_flops, partial(_forth_and_back, model, run, delta))


def _forth_and_back(model: Any, run: Run, delta: Any) -> None:
    with torch.enable_grad(), _attached(delta, model):
        run(model).float().sum().backward()


def _attached(delta: Any, model: Any) -> AbstractContextManager[Any]:
    return nullcontext() if delta is None else delta.attached(model)


def _states(part: Any, rows: int, tokens: int, **more: Any) -> Tensor:
    """[B, T, H] of a model's body."""
    ids = torch.zeros(rows, tokens, dtype=torch.long, device=part.device)
    visible = torch.zeros(1, 1, tokens, tokens, dtype=part.dtype, device=part.device)  # see `shapes`
    taken = inspect.signature(part.forward).parameters
    more |= {"position_ids": ids} if "position_ids" in taken else {}
    more |= {"use_cache": False} if "use_cache" in taken else {}
    return part(input_ids=ids, attention_mask=visible, **more).last_hidden_state
