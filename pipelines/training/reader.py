"""Trains a reader's soft prompt on contexts packed exactly as at question time (arXiv 2204.10019, section 3).

Our choice, where the paper is silent: the target is the gold answer that the packed context holds, questions whose
context holds none are skipped, and the best step is the one with the highest log-probability a token of the dev
answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from frozenlm.context_cache import ContextCache
from frozenlm.lm_tasks import Example, mean_loss, prompt_loss, reads_context_once
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.training import FitResult, fit
from pipelines import config as c
from pipelines import stages
from pipelines.build import Log, module_folder
from pipelines.components import Components
from pipelines.errors import ConfigError
from pipelines.evaluation.questions import Question
from pipelines.packing import Packed
from pipelines.pipeline import Pipeline
from pipelines.training.initializers import initializer
from pipelines.training.settings import loop_settings, training_questions
from pipelines.training.summary import summary
from retrievers.metrics import has_answer
from retrievers.types import Hit

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

CHUNK = 256


@dataclass(frozen=True)
class Prepared:
    """A training question in its packed window.

    Attributes:
        answers: that may be learned; of a reader those that the window holds. Empty: the question is skipped.
    """

    question: Question
    packed: Packed
    answers: tuple[str, ...]


def train_prompt(config: c.FrozenReader | c.ClosedBook, *, restart: bool, log: Log) -> dict[str, Any]:
    """Train the soft prompt of a frozen reader or of the closed-book LM and save it into the workspace.

    Raises:
        ConfigError: no prompt block, or no question whose context holds an answer.
    """
    block, training = config.prompt, config.training
    if block is None or training is None:
        raise ConfigError("training a reader needs both a prompt and a training block")
    parts = training_parts(config, block.length, log)
    lm = parts.lm
    train_questions, dev_questions = training_questions(training)
    prepared, held_out = prepare_both(parts, config, train_questions, dev_questions, log)
    examples, dev = ([first_example(lm, config, one) for one in some if one.answers] for some in (prepared, held_out))
    folder = module_folder(config, block.name)
    contexts = config.workspace_path / "cache" / "contexts"
    prompt, result = fit_prompt(
        lm,
        block,
        training,
        examples,
        dev,
        out=folder.parent / f"{block.name}.run",
        contexts=contexts,
        seed=config.seed,
        limits=training,
        restart=restart,
        log=log,
    )
    prompt.save(folder, lm)
    log(f"prompt saved: {folder}")
    parts.close()
    return {"module": str(folder), "examples": len(examples), "skipped": len(prepared) - len(examples)} | summary(
        result
    )


def training_parts(config: Any, soft_tokens: int, log: Log) -> Components:
    """The parts that pack training windows as at question time, with room for a prompt that is not there yet."""
    parts = Components(config.model_copy(update={"prompt": None}), {}, log=log)
    room = config.packing.model_copy(update={"answer_reserve": config.packing.answer_reserve + soft_tokens})
    parts.config = parts.config.model_copy(update={"packing": room})
    return parts


def fit_prompt(
    lm: FrozenLM,
    block: c.SoftPrompt,
    loop: c.Loop,
    examples: Sequence[Example],
    dev: Sequence[Example],
    *,
    out: Path,
    contexts: Path,
    seed: int,
    limits: c.PromptTraining,
    restart: bool,
    log: Log,
) -> tuple[SoftPrompt, FitResult]:
    """A soft prompt, trained; a run that was interrupted goes on.

    Args:
        loop: settings of the training loop.
        out: folder of the run.
        contexts: where read contexts are kept, and `limits` how, for a prompt behind its context.
    """
    prompt = SoftPrompt.create(lm, block.length, init=initializer(block.init), position=block.position, seed=seed)
    cache = None
    if reads_context_once(lm, prompt):
        budget = limits.context_cache_bytes
        cache = ContextCache(lm, kind=limits.context_cache, byte_budget=budget, folder=contexts)

    def loss(batch: list[Example]) -> tuple[torch.Tensor, int]:
        return prompt_loss(lm, prompt, batch, cache)

    def dev_score() -> float:
        return -mean_loss(lm, prompt, dev, memory_cache=cache)

    result = fit(
        prompt,
        examples=examples,
        loss=loss,
        out=out,
        settings=loop_settings(loop, seed),
        evaluate=dev_score if dev else None,
        lengths=[example.length for example in examples],
        identity={"examples": digest(examples), "dev": digest(dev), "init": block.init.model_dump(mode="json")},
        lm=lm,
        trackers=loop.trackers,
        log=log,
        restart=restart,
    )
    if cache is not None:
        log(cache.report())
    return prompt, result


def prepare_both(
    parts: Components, config: Any, train: Sequence[Question], dev: Sequence[Question], log: Log
) -> tuple[list[Prepared], list[Prepared]]:
    """Packed windows of the training and the dev questions.

    Raises:
        ConfigError: no training question whose context holds an answer.
    """
    prepared, held_out = prepare(parts, config, train, log), prepare(parts, config, dev, log)
    examples, of_dev = (sum(bool(one.answers) for one in some) for some in (prepared, held_out))
    if not examples:
        raise ConfigError(
            f"none of {len(train)} training questions has its answer in the packed context; nothing to learn"
        )
    log(
        f"{examples} training examples, {len(train) - examples} questions skipped (no answer in their context); "
        f"{of_dev} dev examples, {len(dev) - of_dev} skipped"
    )
    return prepared, held_out


def prepare(parts: Components, config: Any, questions: Sequence[Question], log: Log) -> list[Prepared]:
    """Packed windows, one a question."""
    found: list[Prepared] = []
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        texts = [q.text for q in chunk]
        hits: list[list[Hit]] = [[] for _ in chunk]
        if c.retrieves(config):
            hits = stages.rerank(parts, texts, stages.retrieve(parts, texts, config.retrieve_k))
            if config.training.add_gold:
                gold = Pipeline(config, parts).gold_hits(chunk)
                hits = [_with_gold(h, g) for h, g in zip(hits, gold, strict=True)]
        for question, packed in zip(chunk, stages.pack_all(parts, texts, hits), strict=True):
            found.append(Prepared(question, packed, _learnable(config, question, packed)))
        if len(questions) > CHUNK:
            log(f"packed {start + len(chunk)} of {len(questions)} questions")
    return found


def _learnable(config: Any, question: Question, packed: Packed) -> tuple[str, ...]:
    texts = [kept.text for kept in packed.kept]
    held = tuple(a for a in question.answers if any(has_answer(text, [a]) for text in texts))
    keep = not c.retrieves(config) or config.training.unanswerable == "keep"
    return held or (question.answers if keep else ())


def first_example(lm: FrozenLM, config: Any, one: Prepared) -> Example:
    """A window and the first of its answers."""
    return Example.of([*one.packed.context_ids, *lm.close_ids], answer_ids(lm, config, one.answers[0]))


def answer_ids(lm: FrozenLM, config: Any, answer: str) -> list[int]:
    """What is learned of an answer, the token that ends it included; no longer than the room that is kept for it."""
    ids = lm.encode(config.packing.answer.replace("{answer}", answer))[: config.packing.answer_reserve - 1]
    return [*ids, *lm.eos_ids[:1]]


def _with_gold(hits: list[Hit], gold: list[Hit]) -> list[Hit]:
    found = {hit.passage_id for hit in hits}
    return [g for g in gold if g.passage_id not in found] + hits


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of what is learned, for the identity of a run."""
    text = json.dumps([[list(e.context), list(e.answer)] for e in examples])
    return hashlib.sha256(text.encode()).hexdigest()
