"""Optimizers for small modules, and their state as plain tensors and numbers (no pickle).

AdamW (arXiv 1711.05101) is torch's. Adafactor (arXiv 1804.04235) is transformers' with the rate given by us and
parameter scaling off, as in prompt tuning (arXiv 2104.08691, section 3); torch's own caps the rate at 1/sqrt(step),
which makes the paper's constant 0.3 impossible.
"""

from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.train_settings import TrainSettings


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a step moves, by name.

    Raises: ConfigError when there is none.
    """
    found = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not found:
        raise ConfigError(f"{type(module).__name__} has no parameter with requires_grad, so there is nothing to train")
    return found


def build_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of a run; its rate is set by the loop before every step."""
    parameters = list(trained_parameters(module).values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=settings.learning_rate, scale_parameter=False, relative_step=False)


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as tensors `name::key` and as numbers {name: {key: number}}."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in trained_parameters(module).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}::{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    return tensors, numbers


def restore_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Puts a saved state back. Set by hand because `load_state_dict` would cast it to each parameter's dtype.

    Raises: CheckpointError when the state names a parameter that the module does not have.
    """
    parameters = trained_parameters(module)
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("::")
        _owner(parameters, name)
        # A 0-dim tensor is a step count or a norm, which torch's AdamW keeps on the CPU.
        device = torch.device("cpu") if value.ndim == 0 and key == "step" else parameters[name].device
        optimizer.state[parameters[name]][key] = value.to(device)
    for name, values in numbers.items():
        _owner(parameters, name)
        optimizer.state[parameters[name]].update(values)


def _owner(parameters: dict[str, nn.Parameter], name: str) -> None:
    if name not in parameters:
        raise CheckpointError(
            f"the saved optimizer state belongs to parameter {name!r}, which this module lacks "
            f"(it has {sorted(parameters)[:5]}); train into another folder or pass restart=True"
        )
