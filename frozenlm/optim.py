"""Optimizers for small modules, and their state as plain tensors and numbers (no pickle).

AdamW (arXiv 1711.05101) is torch's. Adafactor (arXiv 1804.04235) is transformers' with the rate given by us and
parameter scaling off, as in prompt tuning (arXiv 2104.08691, section 3); torch's own caps the rate at 1/sqrt(step),
which makes the paper's constant 0.3 impossible. Parameters may learn at rates of their own: multiples of the run's
rate, so that one schedule rules them all.
"""

import math
from collections.abc import Iterable, Mapping
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


def build_optimizer(
    module: nn.Module, settings: TrainSettings, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a run.

    rates: multiples of the run's rate by prefix of the parameters' names, as `rate_multiples` reads them

    Raises: ConfigError as `rate_multiples`.
    """
    parameters = trained_parameters(module)
    multiples = rate_multiples(parameters, rates or {})
    groups: list[dict[str, Any]] = []
    for multiple in dict.fromkeys(multiples.values()):
        own = [p for name, p in parameters.items() if multiples[name] == multiple]
        for decay, some in (
            (settings.weight_decay, [p for p in own if p.ndim >= 2]),
            (0.0, [p for p in own if p.ndim < 2]),
        ):
            if some:
                groups.append({"params": some, "weight_decay": decay, "multiple": multiple})
    if settings.optimizer == "adamw":
        # In one pass over memory, which on a CPU is several times faster where many numbers are trained.
        fused = all(parameter.device.type == "cpu" for parameter in parameters.values())
        made: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused or None)
    else:
        from transformers.optimization import Adafactor

        made = Adafactor(groups, lr=settings.learning_rate, scale_parameter=False, relative_step=False)
    set_rate(made, settings.learning_rate)
    return made


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Makes `rate` that of the next step; each group takes its multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiple"]


def rate_multiples(names: Iterable[str], rates: Mapping[str, float]) -> dict[str, float]:
    """The multiple of each parameter: that of the longest prefix of its name, 1 where there is none.

    names: of parameters, parts parted by dots
    rates: by prefix, whole parts: "prompt" is for `prompt` and `prompt.vectors`, not for `prompts.vectors`

    Raises: ConfigError for a multiple that is not a finite number above 0, or a prefix that no parameter has.
    """
    names = list(names)
    for prefix, multiple in rates.items():
        if not (math.isfinite(multiple) and multiple > 0):
            raise ConfigError(
                f"the rate of {prefix!r} is {multiple} times the run's; expected a finite number above 0 (take "
                "requires_grad off what is not to move)"
            )
        if not any(_begins(name, prefix) for name in names):
            raise ConfigError(
                f"a rate is given for {prefix!r}, but none of the {len(names)} trained parameters begins so; the first "
                f"are {names[:20]}"
            )
    fitting = {name: [prefix for prefix in rates if _begins(name, prefix)] for name in names}
    return {name: float(rates[max(found, key=len)]) if found else 1.0 for name, found in fitting.items()}


def _begins(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


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
