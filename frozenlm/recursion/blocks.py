"""Causal Transformer blocks with a gate at their end: the trained way from one pass of the LM to the next.

Norms stand before the parts (pre-norm), and there is no position information: see `connector.py`.
Shapes: B rows, T columns, S columns with those kept from before, H hidden size (embeddings), H' width of the final
hidden states, W width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from frozenlm.recursion.sizes import ConnectorSizes, NormKind

Past = tuple[Tensor, Tensor]
"""Keys and values [B, heads, S, W / heads] of one block."""


def causal(mask: Tensor) -> Tensor:
    """mask [B, T] -> [B, 1, T, T], who may look at whom; a padding column sees itself, or its softmax would be NaN."""
    width = mask.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=mask.device)
    return (earlier & mask.bool()[:, None, None, :]) | itself


def _norm(kind: NormKind) -> Callable[[int], nn.Module]:
    return (lambda size: nn.RMSNorm(size, eps=1e-6)) if kind == "rms" else nn.LayerNorm


class Bridge(nn.Module):
    """The way from one pass to the next: in, blocks, out, gate."""

    def __init__(self, state_size: int, hidden_size: int, sizes: ConnectorSizes) -> None:
        super().__init__()
        width, norm = sizes.width or state_size, _norm(sizes.norm)
        self.enter = nn.Sequential(norm(state_size), nn.Linear(state_size, width, bias=False))
        self.blocks = nn.ModuleList(Block(width, sizes) for _ in range(sizes.depth))
        self.leave = nn.Sequential(norm(width), nn.Linear(width, hidden_size, bias=False))
        self.gate = nn.Parameter(torch.zeros(hidden_size if sizes.gate == "channel" else 1))

    def forward(self, states: Tensor, allowed: Tensor, pasts: list[Past] | None) -> tuple[Tensor, list[Past]]:
        """states [B, T, H'], allowed [B, 1, T, S] -> gated update [B, T, H] and the blocks' keys and values."""
        x = self.enter(states).float()  # under autocast too: the stream that the blocks add to stays exact
        kept: list[Past] = []
        for number, block in enumerate(self.blocks):
            x, past = block(x, allowed, None if pasts is None else pasts[number])
            kept.append(past)
        return self.gate * self.leave(x).float(), kept


class Block(nn.Module):
    """A causal Transformer block. No biases: one on the keys would never move, since the softmax cancels it."""

    def __init__(self, width: int, sizes: ConnectorSizes) -> None:
        super().__init__()
        norm, feed_forward = _norm(sizes.norm), sizes.feed_forward or 4 * width
        self.heads, self.dropout = sizes.heads or 1, nn.Dropout(sizes.dropout)
        self.norm_attention, self.norm_feed_forward = norm(width), norm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, feed_forward, bias=False)
        self.down = nn.Linear(feed_forward, width, bias=False)

    def forward(self, x: Tensor, allowed: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """x [B, T, W], allowed [B, 1, T, S] for S columns with those before -> [B, T, W], keys and values of all S."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.norm_attention(x)).chunk(3, dim=2)
        )
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        read = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        x = x + self.dropout(self.out(read.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.down(functional.gelu(self.up(self.norm_feed_forward(x)))))
        return x, (key, value)
