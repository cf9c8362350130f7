"""Trains a cross-encoder on hard negatives from the very retriever that it will stand behind
(`retrievers.rerank_training`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from frozenlm.training import fit
from pipelines import config as c
from pipelines import stages
from pipelines.build import Log, module_folder
from pipelines.components import Components
from pipelines.errors import ConfigError, retrieval_errors
from pipelines.evaluation.questions import Question
from pipelines.pipeline import Pipeline
from pipelines.training.settings import loop_settings, training_questions
from pipelines.training.summary import of_loop
from retrievers.rerank_training import CrossEncoderTrainer, Mined, RankingExample, RankingQuestion, mine_negatives
from retrievers.types import Passage

CHUNK = 512


def train_reranker(config: c.RerankerJob, *, restart: bool, log: Log) -> dict[str, Any]:
    """Mine, train and save into the workspace. The best step is the one with the highest mean reciprocal rank on dev.

    Raises:
        ConfigError: the re-ranker is no cross-encoder with a checkpoint name, or nothing could be mined.
    """
    block, training = config.reranker, config.training
    if not isinstance(block, c.CrossEncoder) or block.checkpoint is None or training is None:
        raise ConfigError(
            "training needs reranker.kind cross_encoder with a checkpoint (the name to save under) and a training block"
        )
    train_questions, dev_questions = training_questions(training)
    parts = Components(config, {}, log=log)
    mined = _mine(parts, config, training, train_questions)
    log(f"training: {mined}")
    dev = _mine(parts, config, training, dev_questions) if dev_questions else None
    if dev is not None:
        log(f"dev: {dev}")
    parts.close()
    if not mined.examples:
        raise ConfigError("no training example could be mined: no question has both a good and a bad passage retrieved")
    with retrieval_errors():
        trainer = CrossEncoderTrainer(
            block.model,
            seed=config.seed,
            max_length=block.max_length,
            retrieval_weight=block.retrieval_weight,
            device=block.device,
            batch_tokens=block.batch_tokens,
        )
    folder = module_folder(config, block.checkpoint)

    def loss(batch: list[RankingExample]) -> tuple[torch.Tensor, int]:
        return trainer.loss(batch) * len(batch), len(batch)

    result = fit(
        trainer.module,
        examples=mined.examples,
        loss=loss,
        out=folder.parent / f"{block.checkpoint}.run",
        settings=loop_settings(training, config.seed),
        evaluate=(lambda: trainer.evaluate(dev.examples)) if dev is not None and dev.examples else None,
        identity={
            "data": _digest(mined.examples),
            "base": block.model,
            "max_length": block.max_length,
            "retrieval_weight": block.retrieval_weight,
        },
        trackers=training.trackers,
        log=log,
        restart=restart,
    )
    card = {"steps": result.steps, "best_step": result.best_step, "dev_mrr": result.best_score, "data": str(mined)}
    with retrieval_errors():
        trainer.save(folder, card, overwrite=folder.exists())
    log(f"re-ranker saved: {folder}")
    return {
        "module": str(folder),
        "examples": len(mined.examples),
        "skipped": mined.without_positive + mined.without_negative,
    } | of_loop(result)


def _mine(
    parts: Components, config: c.RerankerJob, training: c.RerankerTraining, questions: Sequence[Question]
) -> Mined:
    """Examples from the retriever's own hits; gold passages that it missed are taken from the corpus."""
    asked = [RankingQuestion(q.id, q.text, q.answers, frozenset(q.gold_passages)) for q in questions]
    hits = []
    for start in range(0, len(questions), CHUNK):
        texts = [q.text for q in questions[start : start + CHUNK]]
        hits += stages.retrieve(parts, texts, max(training.depth, config.retrieve_k))
    found = {hit.passage_id for ranked in hits for hit in ranked}
    missed = [q for q in questions if q.gold_passages and not found.issuperset(q.gold_passages)]
    gold: dict[str, Passage] = {}
    if missed:
        for ranked in Pipeline(config, parts).gold_hits(missed):
            gold |= {h.passage_id: Passage(h.passage_id, h.text, h.title) for h in ranked}
    with retrieval_errors():
        return mine_negatives(
            asked,
            hits,
            negatives=training.negatives,
            depth=training.depth,
            balanced=training.balanced,
            passage=gold.get,
            seed=config.seed,
        )


def _digest(examples: Sequence[RankingExample]) -> str:
    text = json.dumps([[e.question, *e.passages, *e.scores] for e in examples])
    return hashlib.sha256(text.encode()).hexdigest()
