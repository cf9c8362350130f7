"""What a training run is told: steps, rates, batches. Kept apart from the loop so that the settings can be written to
the saved state and compared when a run is resumed.

Prompt tuning (arXiv 2104.08691, section 3) trained for 30,000 steps with Adafactor, a constant rate of 0.3 and weight
decay 1e-5. Our choice: AdamW at 0.02, which reaches the same loss in far fewer steps on the small models tried here.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from frozenlm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of one run. Two runs with equal settings, data and initial weights end in the same bits.

    steps: optimizer steps
    learning_rate: the peak rate
    batch_size: examples that one optimizer step learns from, over all processes
    gradient_accumulation: number of micro-batches a step is cut into; changes memory, not the result
    warmup_steps: steps over which the rate rises linearly from 0
    schedule: what the rate does after the warm-up; "linear" and "cosine" fall to 0 at the last step
    weight_decay: for tensors of two or more dimensions; biases and norms are never decayed
    clip_norm: longest gradient, L2 norm over all parameters; None turns clipping off
    precision: "bf16" runs the loss under autocast; parameters and optimizer stay in their own dtype
    eval_every: steps between two calls of `evaluate`; None: a tenth of the steps
    patience: stop after this many evaluations in a row without a better score; None: never
    save_every: steps between two saved states, so the most work a kill can lose
    seed: everything random in a run is derived from it and the step number
    """

    steps: int
    learning_rate: float = 0.02
    batch_size: int = 8
    gradient_accumulation: int = 1
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = 1.0
    precision: Literal["no", "bf16"] = "no"
    eval_every: int | None = None
    patience: int | None = None
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        for name in ("steps", "batch_size", "gradient_accumulation", "save_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        for name in ("eval_every", "patience"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "a whole number of at least 1, or none")
        rate = self.learning_rate
        _require(math.isfinite(rate) and rate > 0, "learning_rate", rate, "a finite number above 0")
        decay = self.weight_decay
        _require(math.isfinite(decay) and decay >= 0, "weight_decay", decay, "a finite number of at least 0")
        _require(0 <= self.warmup_steps <= self.steps, "warmup_steps", self.warmup_steps, f"0 to steps = {self.steps}")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "a number above 0, or none")
        _require(self.optimizer in ("adamw", "adafactor"), "optimizer", self.optimizer, "adamw or adafactor")
        choices = ("constant", "linear", "cosine")
        _require(self.schedule in choices, "schedule", self.schedule, "constant, linear or cosine")
        _require(self.precision in ("no", "bf16"), "precision", self.precision, "no or bf16")
        _require(
            self.gradient_accumulation <= self.batch_size,
            "gradient_accumulation",
            self.gradient_accumulation,
            f"at most batch_size = {self.batch_size}, since each micro-batch needs an example",
        )

    @property
    def evaluation_interval(self) -> int:
        """Steps between two evaluations."""
        return self.eval_every or max(1, self.steps // 10)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0. A pure function, so a resumed run needs no scheduler state."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        share = 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.learning_rate * share

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names what differs between two nested settings, as lines `a.b: stored 1, now 2`."""
    lines: list[str] = []
    for key in sorted(set(stored) | set(wanted)):
        old, new = stored.get(key, "absent"), wanted.get(key, "absent")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: stored {old!r}, now {new!r}")
    return lines


def _require(ok: bool, name: str, got: object, expected: str) -> None:
    if not ok:
        raise ConfigError(
            f"training setting {name} is {got!r}; expected {expected}; change it in the training settings"
        )
