"""What `frozenlm train --dry-run` says of one run of the training loop, and the plan that most methods share: a soft
prompt beside a frozen LM."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from frozenlm import cost as flops
from frozenlm.architectures import meta_model
from frozenlm.footprint import StepBytes, prompt_activations, step_bytes, weight_bytes
from frozenlm.prompts.text_pretraining import ANSWER
from frozenlm.shapes import ModelShape
from pipelines import config as c
from pipelines.errors import ConfigError
from pipelines.model_sizes import lm_dtype, model_config

LABEL_TOKENS = 2  # of what is said of a pair of sentences: a word and the end


@dataclass(frozen=True)
class Plan:
    """One run of the training loop.

    module: the name it is saved under
    lm_parameters: None where there is no frozen LM
    rows: that run at once; forward and backward FLOPs of one of them: `row_flops`
    runs: how often, as cross-fitting trains a prompt a fold
    phase: which one it is, where a module is trained in several
    not_counted: what is missing from the figures, and why
    """

    module: str
    trained_parameters: int
    lm_parameters: int | None
    dtype: str
    loop: c.Loop
    rows: int
    row_flops: int
    memory: StepBytes
    assumptions: dict[str, Any]
    runs: int = 1
    not_counted: list[str] = field(default_factory=list)
    phase: str = ""

    @property
    def step_flops(self) -> int:
        """Of one update."""
        return self.rows * self.loop.gradient_accumulation * self.row_flops

    @property
    def flops(self) -> int:
        """Of all runs."""
        return self.runs * self.loop.steps * self.step_flops

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "module": self.module,
            "phase": self.phase,
            "runs": self.runs,
            "trained_parameters": self.trained_parameters,
            "steps": self.loop.steps,
            "batch_size": self.loop.batch_size,
            "rows_at_once": self.rows,
            "flops_per_step": self.step_flops,
            "flops": self.flops,
            "memory": asdict(self.memory) | {"total": self.memory.total},
            "assumptions": self.assumptions,
        }


@dataclass(frozen=True)
class PlannedLM:
    """The frozen LM of a config, without weights."""

    config: Any
    model: Any
    shape: ModelShape
    dtype: torch.dtype

    @classmethod
    def of(cls, block: c.LM) -> PlannedLM:
        """Of a config's LM block.

        Raises:
            ConfigError, CheckpointError: as `pipelines.model_sizes.lm_shape`.
        """
        found = model_config(block, "lm")
        dtype = lm_dtype(block, found)
        model = meta_model(found, "lm", dtype=dtype)
        return cls(found, model, ModelShape.of_lm(model), dtype)

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return weight_bytes(self.model)


def pretrained_prompt(config: c.Multitask) -> list[Plan]:
    """Pre-training of a soft prompt on windows of plain text, each as long as they get."""
    if config.pretraining is None or config.prompt is None:
        raise ConfigError("this config has no pretraining block; name the text to pretrain its prompt on")
    block, own = config.pretraining, config.prompt
    sizes = c.SoftPrompt(
        name=block.name, length=own.length, position="prefix" if own.position == "prefix" else "suffix"
    )
    answer = LABEL_TOKENS if block.objective == "next_sentence" else block.answer or ANSWER
    lm = PlannedLM.of(config.lm)
    window = config.lm.window or lm.shape.window
    if window is not None and block.context + answer + own.length > window:
        raise ConfigError(
            f"context {block.context} and answer {answer} tokens do not fit the LM's window of {window} beside "
            f"{own.length} soft tokens; lower one of them"
        )
    return [soft_prompt(lm, sizes, block, tokens=block.context, answer=answer)]


def at_once(loop: c.Loop) -> int:
    """Examples of the largest micro-batch."""
    return -(-loop.batch_size // loop.gradient_accumulation)


def shown(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def soft_prompt(lm: PlannedLM, block: c.SoftPrompt, loop: c.Loop, *, tokens: int, answer: int, runs: int = 1) -> Plan:
    """Training of a soft prompt on rows of so many tokens of text, and answers of so many."""
    shape = lm.shape
    remembered = block.position == "suffix" and shape.kind == "decoder"
    rows = at_once(loop)
    kept = prompt_activations(
        lm.config, dtype=lm.dtype, tokens=tokens, answer_tokens=answer, length=block.length, remembered=remembered
    )
    memory = step_bytes(
        frozen=lm.bytes,
        trained=[(block.length, shape.hidden_size)],
        optimizer=loop.optimizer,
        activations=rows * kept,
    )
    whole = flops.score(shape, tokens + block.length, answer).total
    read = flops.score(shape, tokens, answer).reading if remembered else 0
    return Plan(
        block.name,
        block.length * shape.hidden_size,
        shape.parameters,
        shown(lm.dtype),
        loop,
        rows,
        read + 2 * (whole - read),  # back through a frozen LM costs as much as forth
        memory,
        {"input_tokens": tokens, "answer_tokens": answer, "context_read_once": remembered},
        runs,
    )
