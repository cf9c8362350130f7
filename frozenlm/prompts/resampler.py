"""A fixed number of learned queries that read a text of any length by cross-attention.

It is the trained network of ID-PT (arXiv 2204.10019, section 2), which turns an encoder's output, as long as the text,
into as many vectors as a prompt has. What is inside a block was not to be read in the paper and is our choice, close to
the Perceiver (arXiv 2103.03206):

    q = q + cross(norm(q), features)      q [P, W] learned, the same for every text
    q = q + self(norm(q))                 where asked for: the queries look at each other
    q = q + feed_forward(norm(q))         GELU

Features are normalised once, the queries once more at the end. No matrix has a bias: one on the keys could not be
learned, since a softmax does not change when all its inputs move together. Rows never see each other: the batch is the
first dimension of every tensor, and the mask hides what pads a short text.
Shapes: B rows, T columns of features, E their width, P queries, W width of the network.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["layer", "rms"]


class Resampler(nn.Module):
    """P learned queries over features of any length.

    heads must divide width; `input_dependent.Sizes` checks what may be asked for.
    """

    def __init__(
        self,
        *,
        feature_size: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        feed_forward: int,
        self_attention: bool,
        norm: Norm,
        dropout: float,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(length, width))
        self.feature_norm = _norm(norm, feature_size)
        self.blocks = nn.ModuleList(
            Block(feature_size, width, heads, feed_forward, self_attention, norm, dropout) for _ in range(depth)
        )
        self.norm = _norm(norm, width)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """features [B, T, E], mask [B, T] bool with something true in every row -> [B, P, W], of unit size."""
        features = self.feature_norm(features)
        queries = self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            queries = block(queries, features, mask)
        return self.norm(queries)


class Block(nn.Module):
    """One round: the queries look at the features, perhaps at each other, and are transformed one by one."""

    def __init__(
        self,
        feature_size: int,
        width: int,
        heads: int,
        feed_forward: int,
        self_attention: bool,
        norm: Norm,
        dropout: float,
    ) -> None:
        super().__init__()
        self.cross_norm, self.cross = _norm(norm, width), Attention(width, feature_size, heads)
        self.mutual: Attention | None = None
        if self_attention:
            self.mutual_norm, self.mutual = _norm(norm, width), Attention(width, width, heads)
        self.forward_norm = _norm(norm, width)
        self.widen = nn.Linear(width, feed_forward, bias=False)
        self.narrow = nn.Linear(feed_forward, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """queries [B, P, W], features [B, T, E], mask [B, T] -> [B, P, W]"""
        queries = queries + self.dropout(self.cross(self.cross_norm(queries), features, mask))
        if self.mutual is not None:
            normed = self.mutual_norm(queries)
            queries = queries + self.dropout(self.mutual(normed, normed, None))
        hidden = functional.gelu(self.widen(self.forward_norm(queries)))
        return queries + self.dropout(self.narrow(hidden))


class Attention(nn.Module):
    """Multi-head attention of queries over a source."""

    def __init__(self, width: int, source_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(source_width, width, bias=False)
        self.value = nn.Linear(source_width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """queries [B, P, W], source [B, T, source width], mask [B, T] (None: all seen) -> [B, P, W]"""
        found = functional.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(self.key(source)),
            self._split(self.value(source)),
            attn_mask=None if mask is None else mask[:, None, None, :],
        )
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, vectors: Tensor) -> Tensor:
        """[B, n, W] -> [B, heads, n, W / heads]"""
        return vectors.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _norm(kind: Norm, size: int) -> nn.Module:
    return nn.LayerNorm(size) if kind == "layer" else nn.RMSNorm(size, eps=1e-6)
