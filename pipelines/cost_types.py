"""What figures of cost are made of: what is assumed, a component, and what one config costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from frozenlm import cost as flops
from frozenlm.shapes import ModelShape

SPECIAL = 3  # control tokens around a question and a passage


@dataclass(frozen=True)
class Assumed:
    """Tokens that a config does not say.

    input_tokens: what the LM reads of text; None: as many passages as fit and are retrieved, with the question
    answer_tokens: None: `generation.max_new_tokens`, so an upper bound
    question_tokens, passage_tokens: with their templates; near the means of Natural Questions and passages of 100 words
    """

    input_tokens: int | None = None
    answer_tokens: int | None = None
    question_tokens: int = 16
    passage_tokens: int = 150


@dataclass(frozen=True)
class Component:
    """A part of the pipeline: FLOPs of one input, parameters of its own, how many of these are trained."""

    flops: int
    parameters: int = 0
    trained: int = 0


@dataclass
class Cost:
    """What one config costs.

    components: by name, in the order in which they run
    lm, one_pass: the frozen LM, and its FLOPs alone; None where there is none
    assumptions: what the figures rest on
    not_counted: what is missing from them, and why
    spared: FLOPs of an input that recursion spares its further passes; None where none is spared
    paying_share: of inputs that get a second pass, on dev; None where that is not known, and without recursion
    """

    components: dict[str, Component] = field(default_factory=dict)
    lm: ModelShape | None = None
    one_pass: int | None = None
    assumptions: dict[str, Any] = field(default_factory=dict)
    not_counted: list[str] = field(default_factory=list)
    spared: int | None = None
    paying_share: float | None = None

    @property
    def flops(self) -> int:
        """Of all components."""
        return sum(part.flops for part in self.components.values())

    def spare(self, flops: int, paying_share: float | None) -> None:
        """Note what an input costs that `when` spares, and on dev how many it does not spare."""
        self.spared, self.paying_share = flops, paying_share
        if paying_share is None:
            self.not_counted.append("the share of inputs that are spared: no threshold is tuned in this workspace")

    def read_by_lm(self, lm: ModelShape, tokens: int, answer_tokens: int, *, beams: int, soft_tokens: int) -> None:
        """Add one pass of the LM over a text, and what soft tokens beside the text add to it."""
        alone = flops.generate(lm, tokens, answer_tokens, beams=beams)
        self.lm, self.one_pass = lm, alone.total
        self.components["lm_prefill"] = Component(alone.reading, lm.parameters)
        self.components["lm_decoding"] = Component(alone.answering)
        if soft_tokens:
            more = flops.soft_tokens(lm, tokens, answer_tokens, soft_tokens, beams=beams)
            size = soft_tokens * lm.hidden_size
            self.components["prompt"] = Component(more, size, size)
        self.assumptions |= {"input_tokens": tokens, "answer_tokens": answer_tokens, "beams": beams}
        self.assumptions |= {"soft_tokens": soft_tokens}

    def record(self, kind: str) -> dict[str, Any]:
        """As JSON values."""
        trained = sum(part.trained for part in self.components.values())
        total, share, spared = self.flops, self.paying_share, self.spared
        mean = None if share is None or spared is None else round(share * total + (1 - share) * spared)
        return {
            "kind": kind,
            "trained_parameters": trained,
            "lm_parameters": self.lm.parameters if self.lm else None,
            "lm_embedding_parameters": self.lm.embeddings if self.lm else None,
            "parameter_ratio": trained / self.lm.parameters if self.lm else None,
            "flops_per_input": total,
            "flops_one_pass": self.one_pass,
            "flops_ratio_to_one_pass": total / self.one_pass if self.one_pass else None,
            "flops_spared_input": spared,
            "second_pass_share": share,
            "flops_mean": mean if spared is not None else total,
            "components": {
                name: {"flops": part.flops, "parameters": part.parameters, "trained_parameters": part.trained}
                for name, part in self.components.items()
            },
            "assumptions": self.assumptions | {"attention": "every query-key pair, masked ones too"},
            "not_counted": self.not_counted,
        }
