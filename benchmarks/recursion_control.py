"""The control of benchmarks/recursion.py: one pass with as many trained parameters as a connector has, as LoRA.

A connector adds a second pass and also trained weights by the hundred thousand, where a prompt has a thousand. What the
weights alone are worth, this shows: LoRA on every dense layer of the LM, as many parameters, the same questions, steps
and first prompt, read in one pass.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import nn

from frozenlm.deltas.attach import attach
from frozenlm.deltas.lora import PeftDelta
from frozenlm.lm_tasks import mean_loss, prompt_loss
from frozenlm.prompts.budget import fit_to_budget
from frozenlm.prompts.interface import PromptInput, prompted
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.training import fit
from pipelines.build import module_folder
from pipelines.evaluation.answers import exact_match, f1
from pipelines.evaluation.questions import QuestionList
from pipelines.training.reader import first_example, prepare, prepare_both, training_parts
from pipelines.training.settings import loop_settings, training_questions


class Control:
    """LoRA and a prompt that goes on from one already trained. config: of the first pass, closed book."""

    def __init__(self, config: Any, *, first: str, parameters: int) -> None:
        self.config = config
        self.parts = training_parts(config, config.prompt.length, print)
        self.lm = self.parts.lm
        self.prompt = SoftPrompt.load(module_folder(config, first), self.lm)
        budget = parameters - sum(p.numel() for p in self.prompt.parameters())
        rank = fit_to_budget(lambda r: sum(p.numel() for p in self._lora(r).parameters()), budget)
        self.lora = self._lora(rank)

    def _lora(self, rank: int) -> PeftDelta:
        return PeftDelta.create(self.lm, targets="all", seed=self.config.seed, r=rank, lora_alpha=rank)

    def train(self) -> dict[str, Any]:
        """As the other methods are trained: the best step on dev."""
        training, start = self.config.training, time.process_time()
        some, held_out = prepare_both(self.parts, self.config, *training_questions(training), print)
        examples, dev = ([first_example(self.lm, self.config, one) for one in part] for part in (some, held_out))
        module = nn.ModuleList([self.lora, self.prompt])

        def loss(batch: list[Any]) -> Any:
            with attach(self.lm, self.lora):
                return prompt_loss(self.lm, self.prompt, batch)

        def dev_score() -> float:
            with attach(self.lm, self.lora):
                return -mean_loss(self.lm, self.prompt, dev)

        result = fit(
            module,
            examples=examples,
            loss=loss,
            out=module_folder(self.config, f"{self.config.prompt.name}.run"),
            settings=loop_settings(training, self.config.seed),
            evaluate=dev_score,
            lengths=[example.length for example in examples],
            lm=self.lm,
            log=print,
        )
        return {
            "steps": result.steps,
            "best_step": result.best_step,
            "best_score": result.best_score,
            "trained_parameters": sum(p.numel() for p in module.parameters()),
            "training_cpu_seconds": round(time.process_time() - start, 1),
        }

    def evaluate(self, questions: QuestionList, folder: Path) -> dict[str, Any]:
        """Exact match and F1; the rows as an evaluation writes them, as far as the table needs them."""
        some = prepare(self.parts, self.config, questions, print)
        rows = prompted(
            self.prompt,
            [first_example(self.lm, self.config, one).row for one in some],
            [PromptInput(one.question.text) for one in some],
        )
        with attach(self.lm, self.lora):
            said = self.lm.generate(rows, max_new_tokens=self.config.generation.max_new_tokens)
        lines = []
        for one, found in zip(some, said, strict=True):
            text, golds = found.text.strip(), one.question.answers
            lines.append({"id": one.question.id, "prediction": text, "em": exact_match(text, golds)})
            lines[-1]["f1"] = f1(text, golds)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        figures = {name: sum(line[name] for line in lines) / len(lines) for name in ("em", "f1")}
        return {"n": len(lines), **figures, "lm_weights_changed": self.lm.verify().changed}
