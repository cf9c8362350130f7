"""The network that prefix tuning trains in the place of the prefix itself: arXiv 2101.00190, section 4.3.

Embedding(P, d') -> Linear(d', m) -> Tanh -> Linear(m, 2 L K D). The paper found that numbers which all come out of one
network train more steadily than as many free ones; after training only what it puts out is kept.

Our choice: it can begin at any prefix. Its last layer is solved for, by least squares, so that what comes out at first
is the prefix wanted (exactly so, but for rounding, where m is at least P).
"""

import torch
from torch import Tensor, nn

from frozenlm.errors import ConfigError


class PrefixNetwork(nn.Module):
    """Puts out one prefix.

    start: [L, 2, P, K, D] what it puts out at first
    embedding_size: d'
    middle_size: m
    generator: of the embedding and the first layer

    Raises: ConfigError for a size below 1.
    """

    def __init__(self, start: Tensor, *, embedding_size: int, middle_size: int, generator: torch.Generator) -> None:
        super().__init__()
        if min(embedding_size, middle_size) < 1:
            raise ConfigError(f"the sizes of a prefix network are at least 1, got {embedding_size} and {middle_size}")
        self.shape = tuple(start.shape)
        target = start.detach().transpose(0, 2).transpose(1, 2).flatten(1)  # [P, L * 2 * K * D]
        self.embedding = nn.Parameter(torch.randn(len(target), embedding_size, generator=generator))
        self.widen = nn.Linear(embedding_size, middle_size)
        self.out = nn.Linear(middle_size, target.shape[1])
        with torch.no_grad():
            for part in (self.widen.weight, self.widen.bias):
                part.copy_((torch.rand(part.shape, generator=generator) * 2 - 1) / embedding_size**0.5)
            middle = torch.tanh(self.widen(self.embedding)).double()
            solved = torch.linalg.lstsq(
                torch.cat([middle, middle.new_ones(len(middle), 1)], dim=1), target.double(), driver="gelsd"
            ).solution
            self.out.weight.copy_(solved[:-1].T)
            self.out.bias.copy_(solved[-1])

    def forward(self) -> Tensor:
        """[L, 2, P, K, D]"""
        layers, two, length, heads, size = self.shape
        flat = self.out(torch.tanh(self.widen(self.embedding)))
        return flat.view(length, layers, two, heads, size).permute(1, 2, 0, 3, 4)


def network_numbers(length: int, embedding_size: int, middle_size: int, outputs: int) -> int:
    """How many parameters: P d' + (d' + 1) m + (m + 1) outputs, where outputs is 2 L K D."""
    return length * embedding_size + (embedding_size + 1) * middle_size + (middle_size + 1) * outputs
