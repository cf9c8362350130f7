"""Trains one prompt method or delta on a mixture of tasks; arXiv 2204.10019, section 2, trains ID-PT on P3's mixture.

The rows of a run are drawn beforehand, all of them, so that a resumed run sees the same ones. Our choice: the best step
is the one with the highest mean over the tasks' dev scores. DiffPruning is two runs, with gates and then pruned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from frozenlm.context_cache import ContextCache
from frozenlm.deltas.attach import using
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.saved_bytes import saved_bytes
from frozenlm.train_settings import TrainSettings
from frozenlm.training import FitResult, fit
from pipelines import build_prompts, build_tasks
from pipelines import config as c
from pipelines.build import Log, frozen_lm, module_folder
from pipelines.errors import ConfigError
from pipelines.evaluation.tasks import dev_scores
from pipelines.surface import clean
from pipelines.tasks.encoding import RowEncoder, too_long
from pipelines.tasks.mixture import mixture
from pipelines.tasks.task import TaskRow
from pipelines.training.kept_bytes import KeptBytes
from pipelines.training.phases import fit_in_phases
from pipelines.training.prompt_pretraining import begun
from pipelines.training.settings import loop_settings
from pipelines.training.summary import kept_parameters, of_steps, summary, trained_parameters


def train_multitask(config: c.Multitask, *, restart: bool, log: Log) -> dict[str, Any]:
    """Train the config's prompt or delta on its tasks and save it into the workspace.

    Raises:
        ConfigError: nothing to train, no task to train on, or a task that is empty or damaged.
        CheckpointError: the prompt that it begins from has not been pretrained.
    """
    config = begun(config)
    block, training = config.trained, config.training
    if block is None or training is None:
        raise ConfigError("training on tasks needs a prompt or a delta, and a training block")
    train = build_tasks.tasks(config, "train", seen=True, log=log)
    dev = {
        task.name: task.rows["dev"][: training.dev_limit]
        for task in build_tasks.tasks(config, "dev", seen=True, log=log)
    }
    drawn = mixture(
        train,
        draws=training.steps * training.batch_size,
        cap=config.mixture.cap,
        temperature=config.mixture.temperature,
        weights={task.name: task.weight for task in build_tasks.expanded(config.tasks) if task.seen},
        seed=config.seed,
    )
    log("rows drawn: " + ", ".join(f"{name} {count}" for name, count in drawn.counts.items()))
    lm = frozen_lm(config.lm)  # after the tasks, so that what is wrong with them is said at once
    encoder = build_tasks.encoder(config)
    coder = build_tasks.row_encoder(config, lm)
    known = _encoded(coder, drawn)
    examples = [known[row.id] for row in drawn]
    module: Any = build_tasks.new_module(config, block, lm, encoder)
    cut = {
        "inputs_cut": coder.counts.inputs_cut,
        "answers_cut": coder.counts.answers_cut,
        "encoder_inputs_cut": sum(too_long(module, [example.source for example in known.values()])),
    }
    if any(cut.values()):
        counts = ", ".join(f"{name} {count}" for name, count in cut.items())
        log(f"too long, of {len(known)} different inputs: {counts}")
    asked = {row.id: coder.scored(row) for rows in dev.values() for row in rows}
    trained = trained_parameters(module)
    log(f"{block.kind}: {trained:,} trained parameters")

    folder = module_folder(config, block.name)
    kept = KeptBytes(folder.parent / f"{block.name}.run", restart=restart)

    def loss(batch: list[Example]) -> tuple[torch.Tensor, int]:
        with saved_bytes(lm.model) as saved, using(lm, module) as prompt:
            value, units = prompt_loss(lm, prompt, batch, unit=training.loss_unit)
        kept.add(saved.total)
        return value + units * module.penalty() if hasattr(module, "penalty") else value, units

    read = ContextCache(lm) if lm.kind == "decoder" else None  # dev contexts, for suffix prompts

    def score() -> Mapping[str, float]:
        scores = dev_scores(
            lm,
            module,
            dev,
            encode_row=lambda row: asked[row.id],
            normalize=config.evaluation.normalize,
            max_new_tokens=config.generation.max_new_tokens,
            stop=tuple(config.generation.stop),
            clean=lambda text: clean(text, join_digits=config.surface.join_digits, as_in_passage=False),
            memory_cache=read,
            metrics={task.name: task.metric for task in train},
        )
        mean = sum(scores.values()) / len(scores)
        log(f"dev: mean {mean:.3f}  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        return scores | {"score": mean}

    settings = loop_settings(training, config.seed)

    def fitted(settings: TrainSettings, run: str, rates: Mapping[str, float]) -> FitResult:
        return fit(
            module,
            examples=examples,
            loss=loss,
            out=folder.parent / f"{block.name}.{run}",
            settings=settings,
            rates=rates,
            evaluate=score,
            lengths=None,
            identity=identity,
            lm=lm,
            trackers=training.trackers,
            log=log,
            restart=restart,
        )

    def prune() -> None:
        nonlocal module
        module = module.pruned()

    identity = {
        "examples": _digest(examples),
        "dev": hashlib.sha256(json.dumps([[r.id for r in of] for of in dev.values()]).encode()).hexdigest(),
        "prompt": block.model_dump(mode="json", exclude={"unseen": True, "lower_states": {"byte_budget"}}),
        "encoder": encoder.fingerprint if encoder is not None else None,
        **({} if encoder is None else {"encoder_max_length": encoder.max_length}),
        "loss_unit": training.loss_unit,
        **build_prompts.begins_with(config, block),
    }
    result = fit_in_phases(fitted, settings, block, prune)
    if encoder is not None:
        encoder.assert_unchanged()
    module.save(folder, lm)
    log(f"saved: {folder}")
    return {
        "module": str(folder),
        "trained_parameters": trained,
        "kept_parameters": kept_parameters(folder, module),
        "examples": len(examples),
        "inputs": len(known),
        **cut,
        **summary(result),
        **of_steps(result, kept, module, log),
        "encoder_weights_changed": encoder.verify().changed if encoder is not None else None,
    }


def _encoded(coder: RowEncoder, rows: Sequence[TaskRow]) -> dict[str, Example]:
    """Row id -> example; a row that is drawn again is encoded once, and so counted once where it is cut."""
    known: dict[str, Example] = {}
    for row in rows:
        if row.id not in known:
            known[row.id] = coder.example(row)
    return known


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.context, example.answer, example.source.task]).encode())
    return digest.hexdigest()
