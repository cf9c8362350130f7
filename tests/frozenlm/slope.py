"""A module of one number whose loss and gradient can be done by hand, and the settings to train it with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.train_settings import TrainSettings
from frozenlm.training import FitResult, fit

SETTINGS = TrainSettings(steps=12, learning_rate=0.1, batch_size=4, save_every=5, eval_every=3)


class Slope(nn.Module):
    """y = a x, with the loss (y - 2 x)^2 = (a - 2)^2 x^2 an example."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1))

    def loss(self, xs: list[float]) -> tuple[Tensor, int]:
        return ((self.a - 2) ** 2 * torch.tensor(xs) ** 2).sum(), len(xs)


XS = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0]


def train(module: Slope, out: Path, settings: TrainSettings = SETTINGS, **more: Any) -> FitResult:
    options: dict[str, Any] = {"examples": XS, "loss": module.loss, "progress": False} | more
    return fit(module, out=out, settings=settings, **options)


def wide_module() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def scores(*values: float) -> Callable[[], float]:
    rest = list(values)
    return lambda: rest.pop(0)
