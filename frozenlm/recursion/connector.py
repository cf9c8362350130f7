"""The connector of neural recursion: Levine et al. 2022, "Standing on the Shoulders of Giant Frozen Language Models",
arXiv 2204.10019, section 4.2.

From the paper: a small trained network that maps the output vectors of the frozen LM to the input vectors of its second
pass, so that LM, connector and LM make one deeper, mostly frozen autoregressive model. Our choices:

    input of the next pass = token embeddings + gate * r * project(blocks(final hidden states, after the last norm))

- The gate (a number a channel, or one for all) begins at exactly zero, so the model begins as the one-pass LM. At the
  first step only the gate has a gradient, from the second on everything has. (Where each pass has its own connector,
  the last one goes first: what stands before a closed gate has no gradient.)
- r is the root mean square of the LM's embeddings. The projection is drawn so that its output has a root mean square of
  about one: a gate of one then adds about as much as an embedding holds.
- The blocks are causal Transformer blocks with norms before their parts. They have no position information of their
  own: the hidden states carry it, and causal attention sees an order.
- With more than two passes, one connector serves after every pass, or each pass has its own.

All is float32 whatever the LM's dtype; the result is cast where the row is assembled. The LM is asked for its sizes and
embeddings when the connector is made and is never held.
Shapes: B rows, T columns, H hidden size (embeddings), H' width of the final hidden states, W width, F feed-forward.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.recursion.blocks import Bridge, Past, causal
from frozenlm.recursion.sizes import ConnectorSizes, require_decoder
from frozenlm.rows import Tokens

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

KIND = "connector"


class Connector(nn.Module):
    """Trained blocks between the passes of an LM; `RecursiveLM` runs them.

    state_size: H'
    hidden_size: H
    embedding_rms: root mean square of the LM's embeddings
    sizes: see `ConnectorSizes`
    """

    def __init__(self, *, state_size: int, hidden_size: int, embedding_rms: float, sizes: ConnectorSizes) -> None:
        super().__init__()
        self.state_size, self.hidden_size, self.embedding_rms = state_size, hidden_size, embedding_rms
        self.sizes = sizes.filled(state_size)
        count = 1 if sizes.shared else sizes.passes - 1
        with torch.random.fork_rng(devices=[]):  # torch fills new layers at random; the caller's numbers go on
            self.bridges = nn.ModuleList(Bridge(state_size, hidden_size, self.sizes) for _ in range(count))

    @classmethod
    def create(cls, lm: "FrozenLM", sizes: ConnectorSizes | None = None, *, seed: int = 0) -> "Connector":
        """A new connector for an LM, on its device; the same seed gives the same connector.

        Raises: ConfigError for an encoder-decoder LM, or sizes that do not go together.
        """
        require_decoder(lm)
        state_size = lm.hidden_states([[Tokens((0,))]])[0].shape[1]
        squares = [lm.embed(ids).float().square().mean(dim=1) for ids in torch.arange(lm.vocab_size).split(4096)]
        made = cls(
            state_size=state_size,
            hidden_size=lm.hidden_size,
            embedding_rms=float(torch.cat(squares).mean().sqrt()),
            sizes=sizes or ConnectorSizes(),
        )
        made._draw(torch.Generator().manual_seed(seed))
        return made.to(lm.device)

    @staticmethod
    def parameter_count(state_size: int, hidden_size: int, sizes: ConnectorSizes | None = None) -> int:
        """Trained numbers: with n(x) = x for RMS and 2x for layer norms, a connector has
        n(H') + H' W + depth (2 n(W) + 4 W^2 + 2 W F) + n(W) + W H + gate."""
        filled = (sizes or ConnectorSizes()).filled(state_size)
        width, feed_forward = filled.width or 0, filled.feed_forward or 0
        norm = 1 if filled.norm == "rms" else 2
        block = 2 * norm * width + 4 * width**2 + 2 * width * feed_forward
        gate = hidden_size if filled.gate == "channel" else 1
        each = norm * state_size + state_size * width + filled.depth * block + norm * width + width * hidden_size + gate
        return each * (1 if filled.shared else filled.passes - 1)

    def forward(self, embeds: Tensor, states: Tensor, mask: Tensor, *, turn: int = 0) -> Tensor:
        """What the next pass reads.

        embeds: [B, T, H] token embeddings
        states: [B, T, H'] final hidden states of the pass before
        mask: [B, T] 1 on tokens, 0 on padding, which may stand on either side
        turn: which pass it was, from 0

        Returns [B, T, H] float32; column t depends on the row's columns up to t only.
        """
        return self._read(embeds, states, causal(mask), turn, None)[0]

    def start(self, embeds: Tensor, states: Tensor, mask: Tensor, *, turn: int) -> tuple[Tensor, "ConnectorState"]:
        """As `forward`, with the state from which single tokens go on."""
        inputs, pasts = self._read(embeds, states, causal(mask), turn, None)
        return inputs, ConnectorState(self, turn, pasts, mask)

    def _read(
        self, embeds: Tensor, states: Tensor, allowed: Tensor, turn: int, pasts: list[Past] | None
    ) -> tuple[Tensor, list[Past]]:
        update, pasts = self.bridges[0 if self.sizes.shared else turn](states.float(), allowed, pasts)
        return embeds.float() + self.embedding_rms * update, pasts

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        """Matrices N(0, 1 / columns); those that add to the residual stream smaller, by the number of additions."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                branch = (2 * self.sizes.depth) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * branch / parameter.shape[1] ** 0.5)

    def save(self, folder: Path | str, lm: "FrozenLM") -> None:
        """Writes the connector with the fingerprint of the LM it belongs to.

        Raises: CheckpointError when it holds non-finite or huge numbers, or the folder cannot be written.
        """
        config = {
            "state_size": self.state_size,
            "hidden_size": self.hidden_size,
            "embedding_rms": self.embedding_rms,
            "sizes": asdict(self.sizes),
        }
        save_module(folder, self.state_dict(), config, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(
        cls, folder: Path | str, lm: "FrozenLM", *, passes: int | None = None, allow_other_lm: bool = False
    ) -> "Connector":
        """Reads what `save` wrote.

        passes: how many are wanted; None takes what it was trained for
        allow_other_lm: accept a connector that was trained for an LM with other weights (of the same sizes)

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another LM or number of passes;
            ConfigError for an encoder-decoder LM.
        """
        require_decoder(lm)
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=lm.fingerprint, allow_other_lm=allow_other_lm)
        made = _rebuilt(cls, config, tensors, folder)
        if passes is not None and passes != made.sizes.passes:
            raise CheckpointError(
                f"{folder} holds a connector trained for {made.sizes.passes} passes, but {passes} are wanted; set "
                f"passes to {made.sizes.passes}, or train a connector for {passes}"
            )
        if made.hidden_size != lm.hidden_size:
            raise CheckpointError(
                f"{folder} holds a connector for embeddings {made.hidden_size} wide; this LM's are {lm.hidden_size}; "
                "load the LM it was trained for"
            )
        return made.to(lm.device)


class ConnectorState:
    """Keys and values of a connector's blocks and the mask of each sequence, while single tokens go on."""

    def __init__(self, connector: Connector, turn: int, pasts: list[Past], mask: Tensor) -> None:
        self._connector, self._turn, self._pasts, self._mask = connector, turn, pasts, mask

    def step(self, embeds: Tensor, states: Tensor) -> Tensor:
        """One token a sequence: embeds [N, H], states [N, H'] -> what the next pass reads [N, H]."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(embeds), 1)], dim=1)
        allowed = self._mask.bool()[:, None, None, :]
        inputs, self._pasts = self._connector._read(
            embeds.unsqueeze(1), states.unsqueeze(1), allowed, self._turn, self._pasts
        )
        return inputs[:, 0]

    def select(self, index: Tensor) -> None:
        """Keep the sequences at index [M], in that order."""
        self._pasts = [(keys[index], values[index]) for keys, values in self._pasts]
        self._mask = self._mask[index]


def _rebuilt(cls: type[Connector], config: dict[str, Any], tensors: dict[str, Tensor], folder: Path | str) -> Connector:
    try:
        made = cls(**{**config, "sizes": ConnectorSizes(**config["sizes"])})
        made.load_state_dict(tensors)
    except (ConfigError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not hold a whole connector: {error}") from error
    return made
