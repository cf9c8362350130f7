"""Trains a reader's soft prompt on contexts packed exactly as at question time (arXiv 2204.10019, section 3).

Our choice, where the paper is silent: the target is the gold answer that the packed context holds, questions whose
context holds none are
skipped, and the best step is the one with the highest log-probability a token of the dev answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from frozenlm.context_cache import ContextCache
from frozenlm.lm_tasks import Example, mean_loss, prompt_loss, reads_context_once
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.training import fit
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
from retrievers.metrics import has_answer
from retrievers.types import Hit

CHUNK = 256


def train_prompt(config: c.FrozenReader | c.ClosedBook, *, restart: bool, log: Log) -> dict[str, Any]:
    """Train the soft prompt of a frozen reader or of the closed-book LM and save it into the workspace.

    Raises:
        ConfigError: no prompt block, or no question whose context holds an answer.
    """
    block, training = config.prompt, config.training
    if block is None or training is None:
        raise ConfigError("training a reader needs both a prompt and a training block")
    parts = Components(config.model_copy(update={"prompt": None}), {}, log=log)
    lm = parts.lm
    train_questions, dev_questions = training_questions(training)
    room = config.packing.model_copy(update={"answer_reserve": config.packing.answer_reserve + block.length})
    parts.config = parts.config.model_copy(update={"packing": room})
    examples, skipped = _examples(parts, config, train_questions, log)
    dev, dev_skipped = _examples(parts, config, dev_questions, log)
    if not examples:
        raise ConfigError(
            f"none of {len(train_questions)} training questions has its answer in the packed context; nothing to learn"
        )
    log(
        f"{len(examples)} training examples, {skipped} questions skipped (no answer in their context); "
        f"{len(dev)} dev examples, {dev_skipped} skipped"
    )
    prompt = SoftPrompt.create(
        lm, block.length, init=initializer(block.init), position=block.position, seed=config.seed
    )
    folder = module_folder(config, block.name)
    run = folder.parent / f"{block.name}.run"
    cache = None
    if reads_context_once(lm, prompt):
        contexts = config.workspace_path / "cache" / "contexts"
        cache = ContextCache(lm, kind=training.context_cache, byte_budget=training.context_cache_bytes, folder=contexts)

    def loss(batch: list[Example]) -> tuple[torch.Tensor, int]:
        return prompt_loss(lm, prompt, batch, cache)

    def dev_score() -> float:
        return -mean_loss(lm, prompt, dev, memory_cache=cache)

    result = fit(
        prompt,
        examples=examples,
        loss=loss,
        out=run,
        settings=loop_settings(training, config.seed),
        evaluate=dev_score if dev else None,
        lengths=[example.length for example in examples],
        identity={"examples": _digest(examples), "dev": _digest(dev), "init": block.init.model_dump(mode="json")},
        lm=lm,
        trackers=training.trackers,
        log=log,
        restart=restart,
    )
    prompt.save(folder, lm)
    if cache is not None:
        log(cache.report())
    log(f"prompt saved: {folder}")
    parts.close()
    return {
        "module": str(folder),
        "examples": len(examples),
        "skipped": skipped,
        "steps": result.steps,
        "best_step": result.best_step,
        "best_score": result.best_score,
        "seconds": result.seconds,
        "already_trained": result.already_trained,
        "lm_weights_changed": result.verification.changed if result.verification is not None else None,
    }


def _examples(
    parts: Components, config: c.FrozenReader | c.ClosedBook, questions: Sequence[Question], log: Log
) -> tuple[list[Example], int]:
    """Packed training examples, and how many questions were skipped because their context holds no answer."""
    examples: list[Example] = []
    skipped = 0
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        texts = [q.text for q in chunk]
        hits: list[list[Hit]] = [[] for _ in chunk]
        if isinstance(config, c.FrozenReader):
            hits = stages.rerank(parts, texts, stages.retrieve(parts, texts, config.retrieve_k))
            if isinstance(config.training, c.PromptTraining) and config.training.add_gold:
                gold = Pipeline(config, parts).gold_hits(chunk)
                hits = [_with_gold(h, g) for h, g in zip(hits, gold, strict=True)]
        for question, packed in zip(chunk, stages.pack_all(parts, texts, hits), strict=True):
            example = _example(parts, config, question, packed)
            skipped += example is None
            if example is not None:
                examples.append(example)
        if len(questions) > CHUNK:
            log(f"packed {start + len(chunk)} of {len(questions)} questions")
    return examples, skipped


def _example(
    parts: Components, config: c.FrozenReader | c.ClosedBook, question: Question, packed: Packed
) -> Example | None:
    texts = [kept.text for kept in packed.kept]
    held = [a for a in question.answers if any(has_answer(text, [a]) for text in texts)]
    keep = isinstance(config, c.ClosedBook) or (config.training is not None and config.training.unanswerable == "keep")
    if not held and not keep:
        return None
    answer = (held or list(question.answers))[0]
    lm = parts.lm
    ids = lm.encode(config.packing.answer.replace("{answer}", answer))[: config.packing.answer_reserve - 1]
    return Example.of([*packed.context_ids, *lm.close_ids], [*ids, *lm.eos_ids[:1]])


def _with_gold(hits: list[Hit], gold: list[Hit]) -> list[Hit]:
    found = {hit.passage_id for hit in hits}
    return [g for g in gold if g.passage_id not in found] + hits


def _digest(examples: Sequence[Example]) -> str:
    text = json.dumps([[list(e.context), list(e.answer)] for e in examples])
    return hashlib.sha256(text.encode()).hexdigest()
