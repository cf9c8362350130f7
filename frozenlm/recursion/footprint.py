"""How many bytes a training step of neural recursion keeps, known without weights; as `frozenlm/footprint.py` for one
pass, whose estimate it shares.

Pass 1 runs without gradient and keeps nothing. Every later pass is kept whole, since all of its columns depend on the
connector in front of it, and so are the connectors. The head runs on some positions at a time (`token_losses.py`).
Shapes: T tokens, H hidden size (embeddings), H' width of the final hidden states, V vocabulary.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from frozenlm.architectures import pretended_model
from frozenlm.footprint import FLOAT32, LOGITS, kept_by
from frozenlm.recursion.blocks import Bridge
from frozenlm.recursion.connector import Connector
from frozenlm.recursion.sizes import ConnectorSizes
from frozenlm.recursion.token_losses import CHUNK
from frozenlm.shapes import Growth, growth, model_growth


def connector_shapes(state_size: int, hidden_size: int, sizes: ConnectorSizes) -> list[tuple[int, ...]]:
    """The shape of every trained tensor of a connector, which is built on the meta device."""
    with torch.device("meta"):
        made = Connector(state_size=state_size, hidden_size=hidden_size, embedding_rms=1.0, sizes=sizes)
    return [tuple(parameter.shape) for parameter in made.parameters()]


def row_activations(
    config: Any, sizes: ConnectorSizes, *, dtype: torch.dtype, tokens: int, soft_tokens: int = 0
) -> int:
    """Bytes kept for one row through all connectors and passes, the head's left out.

    config: the LM's
    tokens: of the text and of all of its answer but the last, which is only predicted
    soft_tokens: of the prompt in the last pass

    Raises: ConfigError when the model cannot be run without its weights.
    """
    with pretended_model(config, "lm", dtype=dtype) as model:
        table = model.get_input_embeddings()
        table.weight.requires_grad_(True)  # the connector's place: everything after the embeddings depends on it
        body = model_growth(model.base_model, kept_by(model))
        width = model.get_output_embeddings().weight.shape[1]
    crossings = sizes.passes - 1
    between = _connector_growth(width, table.embedding_dim, sizes)
    return (crossings - 1) * body.at(tokens) + body.at(tokens + soft_tokens) + crossings * between.at(tokens)


def loss_bytes(positions: int, *, state_size: int, vocab_size: int, itemsize: int) -> int:
    """Bytes of the predicted positions of a batch: the logits of those that the head runs on at once, and a gradient
    [n, H'] for all.

    itemsize: bytes of a number in the LM's dtype
    """
    logits = min(positions, CHUNK) * vocab_size * (LOGITS * FLOAT32 + itemsize)
    return logits + positions * state_size * itemsize


def _connector_growth(state_size: int, hidden_size: int, sizes: ConnectorSizes) -> Growth:
    """Bytes that one connector keeps, as a function of the tokens that go through it."""
    with FakeTensorMode():
        bridge = Bridge(state_size, hidden_size, sizes.filled(state_size))
        kept = kept_by(bridge)

        def run(tokens: int) -> int:
            states = torch.zeros(1, tokens, state_size)
            allowed = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
            return kept(lambda: bridge(states, allowed, None))

        return growth(run)
