"""How many bytes a forward pass keeps for its backward pass, counted while it runs.

What a method saves over full fine-tuning is seen here: weights, gradients and optimizer state are sums over shapes,
while what autograd keeps depends on where the gradients have to go. Each storage counts once; weights of the frozen
model, which lie there anyway, do not. The same on every machine, unlike the peak of a process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class SavedBytes:
    """What has been kept so far."""

    ignored: frozenset[int] = frozenset()
    storages: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.storages.values())

    def keep(self, tensor: Tensor) -> Tensor:
        """Take note of a tensor that autograd keeps."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.ignored:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph, which holds the tensor: neither would ever go


@contextmanager
def saved_bytes(*models: nn.Module) -> Iterator[SavedBytes]:
    """Count within the block what autograd keeps, the weights of these models left out.

    A tensor that is freed within the block, and whose place another takes, is counted once.
    """
    held = frozenset(p.untyped_storage().data_ptr() for model in models for p in model.parameters())
    counted = SavedBytes(held)
    with torch.autograd.graph.saved_tensors_hooks(counted.keep, lambda kept: kept):
        yield counted
