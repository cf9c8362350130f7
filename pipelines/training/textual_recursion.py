"""Trains both prompts of textual recursion (arXiv 2204.10019, section 4.1) and tunes when the second pass is worth it.

In order, each step taken up after a kill: the prompt of pass 1, as a reader's is; candidates of the training questions
from prompts that never saw them (`frozenlm.recursion.crossfit`; our choice, the paper does not say), kept on disk under
a name that changes with all they depend on; the prompt of pass 2 on these; a threshold for `when: below_confidence`, by
exact match on dev. Our choice too: where a candidate is a right answer, that wording of it is the target of pass 2.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frozenlm.lm_tasks import Example
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.candidates import Candidates, oracle_at_n
from frozenlm.recursion.crossfit import cross_fit, folds
from frozenlm.recursion.textual import TextualRecursion
from pipelines import build_recursion
from pipelines import config as c
from pipelines.build import Log, module_folder
from pipelines.components import prompt_sha256
from pipelines.errors import ConfigError
from pipelines.evaluation.answers import exact_match
from pipelines.textual_recursion import asked, sampled
from pipelines.training.reader import (
    Prepared,
    answer_ids,
    digest,
    first_example,
    fit_prompt,
    prepare_both,
    training_parts,
)
from pipelines.training.settings import loop_settings, training_questions
from pipelines.training.summary import summary
from pipelines.training.when import check_tunable, tune_when
from retrievers.files import sha256_json
from retrievers.metrics import squad_normalized

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM


def train_textual(config: c.TextualRecursion, *, restart: bool, log: Log) -> dict[str, Any]:
    """Train both prompts and save them, the candidates and the threshold into the workspace.

    Raises:
        ConfigError: nothing to train, no dev questions to tune a threshold on, or nothing answerable.
    """
    training, first, second = config.training, config.prompt, config.second_pass.prompt
    if training is None or (first is None and second is None):
        raise ConfigError("training textual recursion needs a training block and at least one prompt block")
    check_tunable(config.when, training)
    parts = training_parts(config, first.length if first is not None else 0, log)
    prepared, dev = prepare_both(parts, config, *training_questions(training), log)
    if second is not None:
        folds(_keys([one for one in prepared if one.answers]), training.folds)  # refused before hours of training
    job = _Job(config, training, parts.lm, [one for one in prepared if one.answers], dev, restart, log)
    found: dict[str, Any] = {"examples": len(job.train), "skipped": len(prepared) - len(job.train)}
    prompt = None
    if first is not None:
        prompt, found["first_pass"] = job.fit_first()
    if second is not None:
        found |= job.fit_second(prompt)
    else:
        found |= found["first_pass"]
    parts.close()
    return found


@dataclass(frozen=True)
class _Job:
    """One training of one config. train: questions with something to learn; dev: all of them."""

    config: c.TextualRecursion
    training: c.TextualTraining
    lm: FrozenLM
    train: list[Prepared]
    dev: list[Prepared]
    restart: bool
    log: Log

    def fit_first(self) -> tuple[SoftPrompt, dict[str, Any]]:
        """The prompt of pass 1, trained on all questions and saved."""
        block = self.config.prompt
        folder = module_folder(self.config, block.name if block is not None else "")
        prompt, found = self._fit_first(self._firsts(self.train), folder.parent / f"{folder.name}.run", self.restart)
        prompt.save(folder, self.lm)
        self.log(f"prompt of pass 1 saved: {folder}")
        return prompt, {"module": str(folder), **found}

    def fit_second(self, first: SoftPrompt | None) -> dict[str, Any]:
        """The prompt of pass 2, on cross-fitted candidates, saved; and the threshold."""
        block = self.config.second_pass.prompt
        if block is None:
            raise ConfigError("this config has no second_pass.prompt block")
        drawn, folder = self._cross_fitted()
        # The length of the prompt decides how many candidates fit; its values do not.
        unlearned = SoftPrompt.create(self.lm, block.length, position=block.position)
        of_folds = build_recursion.textual(self.config, self.lm, first=None, second=unlearned)
        examples, dropped = self._seconds(of_folds, self.train, drawn)
        recursion = build_recursion.textual(self.config, self.lm, first=first, second=unlearned)
        held_out = [one for one in self.dev if one.answers]
        dev_rows = [asked(one.question.text, one.packed) for one in held_out]
        dev, _ = self._seconds(recursion, held_out, sampled(recursion, dev_rows))
        module = module_folder(self.config, block.name)
        prompt, result = fit_prompt(
            self.lm,
            block,
            self.config.second_pass.training or self.training,
            examples,
            dev,
            out=module.parent / f"{block.name}.run",
            contexts=self._contexts,
            seed=self.config.seed,
            limits=self.training,
            restart=self.restart,
            log=self.log,
        )
        prompt.save(module, self.lm)
        self.log(f"prompt of pass 2 saved: {module}")
        return {
            "module": str(module),
            "candidates": str(folder),
            "candidates_dropped": dropped,
            "without_candidates": sum(not one.ranked for one in drawn),
            "train_oracle_at_n": _oracle(self.train, drawn),
            **summary(result),
            "when": self._tuned(first, prompt),
        }

    @property
    def _contexts(self) -> Path:
        return self.config.workspace_path / "cache" / "contexts"

    def _firsts(self, some: Sequence[Prepared]) -> list[Example]:
        return [first_example(self.lm, self.config, one) for one in some if one.answers]

    def _fit_first(self, examples: Sequence[Example], out: Path, restart: bool) -> tuple[SoftPrompt, dict[str, Any]]:
        block = self.config.prompt
        if block is None:
            raise ConfigError("this config has no prompt block")
        prompt, result = fit_prompt(
            self.lm,
            block,
            self.training,
            examples,
            self._firsts(self.dev),
            out=out,
            contexts=self._contexts,
            seed=self.config.seed,
            limits=self.training,
            restart=restart,
            log=self.log,
        )
        return prompt, summary(result)

    def _cross_fitted(self) -> tuple[list[Candidates], Path]:
        """Candidates of the training questions from prompts that never saw them, and the folder that holds them."""
        identity = self._candidates_identity()
        folder = self.config.workspace_path / "candidates" / sha256_json(identity)[:12]
        runs = folder.with_name(f"{folder.name}.folds")
        if self.restart:
            shutil.rmtree(runs, ignore_errors=True)
        rows = [asked(one.question.text, one.packed) for one in self.train]

        def train(fold: int, outside: list[int]) -> TextualRecursion:
            prompt = None
            if self.config.prompt is not None:
                examples = self._firsts([self.train[place] for place in outside])
                prompt, _ = self._fit_first(examples, runs / f"{fold}.run", restart=False)
            return build_recursion.textual(self.config, self.lm, first=prompt, second=None)

        def sample(recursion: TextualRecursion, places: list[int]) -> list[Candidates]:
            return sampled(recursion, [rows[place] for place in places])

        found = cross_fit(
            folder,
            [f"{place}/{one.question.id}" for place, one in enumerate(self.train)],
            train=train,
            sample=sample,
            k=self.training.folds,
            keys=_keys(self.train),
            identity=identity,
            seed=self.config.seed,
            restart=self.restart,
            log=self.log,
        )
        shutil.rmtree(runs, ignore_errors=True)
        self.log(f"candidates of {len(found)} training questions: {folder}")
        return found, folder

    def _candidates_identity(self) -> dict[str, Any]:
        block, config = self.config.prompt, self.config
        return {
            "lm": self.lm.fingerprint,
            "lm_dtype": str(self.lm.dtype),
            "examples": digest(self._firsts(self.train)),
            "dev": digest(self._firsts(self.dev)),
            "questions": sha256_json([[one.question.id, one.question.text] for one in self.train]),
            "prompt": block.model_dump(mode="json", exclude={"name", "missing"}) if block is not None else None,
            "training": loop_settings(self.training, config.seed).as_dict(),
            "folds": self.training.folds,
            "sampling": asdict(build_recursion.sampling(config)),
            "form": config.candidates.form,
        }

    def _seconds(
        self, recursion: TextualRecursion, some: Sequence[Prepared], drawn: Sequence[Candidates]
    ) -> tuple[list[Example], int]:
        """What pass 2 learns on, and how many candidates found no room."""
        rows = recursion.second_rows([asked(one.question.text, one.packed) for one in some], drawn)
        examples = []
        for one, row in zip(some, rows, strict=True):
            said = {squad_normalized(candidate.text) for candidate in row.listed}
            target = next((a for a in one.answers if squad_normalized(a) in said), one.answers[0])
            ids = answer_ids(self.lm, self.config, target)
            examples.append(Example.of(row.context, ids, PromptInput(row.text)))
        return examples, sum(row.dropped for row in rows)

    def _tuned(self, first: SoftPrompt | None, second: SoftPrompt) -> dict[str, Any] | None:
        """The threshold below which a second pass pays on dev, recorded; None without dev questions."""
        if not self.dev:
            return None
        recursion = build_recursion.textual(self.config, self.lm, first=first, second=second)
        rows = [asked(one.question.text, one.packed) for one in self.dev]
        firsts, lasts = recursion.first_answers(rows), [one.text for one in recursion.answer(rows)]
        modules = {"prompts": [prompt_sha256(first), prompt_sha256(second)]}
        return tune_when(self.config, self.lm, self.dev, firsts, lasts, modules, self.log)


def _keys(some: Sequence[Prepared]) -> list[str]:
    """Equal where two questions must not be learned from for each other."""
    return [" ".join(one.question.text.casefold().split()) for one in some]


def _oracle(some: Sequence[Prepared], drawn: Sequence[Candidates]) -> float:
    """Share of questions with a right answer among their candidates, before any cleaning of the surface."""

    def is_right(one: Prepared) -> Callable[[str], bool]:
        return lambda text: exact_match(text, one.question.answers)

    right = (oracle_at_n(found.ranked, is_right(one)) for one, found in zip(some, drawn, strict=True))
    return sum(right) / len(some)
