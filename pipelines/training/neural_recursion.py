"""Trains the connector of neural recursion, and the prompt of its last pass, on questions (arXiv 2204.10019, section
4.2): the second stage, behind `pretraining.py`.

Our choices: both are trained in one loop, the target and the best step are those of a reader's prompt (`reader.py`),
and the states of pass 1 come from disk.
"""

from __future__ import annotations

from typing import Any

import torch

from frozenlm.lm_tasks import Example
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.recursion.loss import mean_recursion_loss, recursion_loss, rows_read
from frozenlm.recursion.neural import RecursiveLM
from frozenlm.recursion.selective import NeuralRecursion
from frozenlm.recursion.when import UNSURE_OF_ALL
from frozenlm.training import fit
from pipelines import build_recursion
from pipelines import config as c
from pipelines.build import Log, module_folder, soft_prompt
from pipelines.errors import CheckpointError, ConfigError
from pipelines.neural_recursion import modules, recurred
from pipelines.training.initializers import initializer
from pipelines.training.reader import Prepared, digest, first_example, prepare_both, training_parts
from pipelines.training.settings import loop_settings, training_questions
from pipelines.training.summary import summary, trained_parameters
from pipelines.training.when import check_tunable, tune_when


def train_neural(config: c.NeuralRecursion, *, restart: bool, log: Log) -> dict[str, Any]:
    """Train connector and prompt and save them into the workspace. An interrupted run goes on.

    Raises:
        ConfigError: no training block, no question to learn from, an LM that is not decoder-only.
        CheckpointError: no pretrained connector, or a prompt to start from that is not there or of another shape.
    """
    training, block = config.training, config.prompt
    if training is None:
        raise ConfigError("training a connector needs a training block")
    check_tunable(config.when, training)
    longest = max(one.length if one is not None else 0 for one in (block, config.plain_prompt))
    parts = training_parts(config.model_copy(update={"plain_prompt": None}), longest, log)
    lm = parts.lm
    plain = soft_prompt(config, config.plain_prompt, lm, key="plain_prompt") if training.dev else None
    connector, start = build_recursion.starting_connector(config, lm, log)
    prompt = _starting_prompt(config, lm) if block is not None else None
    prepared, held_out = prepare_both(parts, config, *training_questions(training), log)
    examples, dev = ([first_example(lm, config, one) for one in some if one.answers] for some in (prepared, held_out))
    run = config.connector.name
    cache = build_recursion.first_pass_cache(config, lm, lambda: rows_read([*examples, *dev]), run, log)
    model = RecursiveLM(lm, connector, prompt)
    trained = trained_parameters(model.module)
    log(f"{model.passes} passes, {trained:,} trained parameters")

    def loss(batch: list[Example]) -> tuple[torch.Tensor, int]:
        return recursion_loss(model, batch, cache)

    folder = module_folder(config, config.connector.name)
    result = fit(
        model.module,
        examples=examples,
        loss=loss,
        out=folder.parent / f"{config.connector.name}.run",
        settings=loop_settings(training, config.seed),
        rates=prompt_rate(training),
        evaluate=(lambda: -mean_recursion_loss(model, dev, first_pass=cache)) if dev else None,
        lengths=[example.length for example in examples],
        identity={
            "examples": digest(examples),
            "dev": digest(dev),
            "connector": config.connector.model_dump(mode="json", exclude={"name", "missing"}),
            "start": start,
            "prompt": block.model_dump(mode="json", exclude={"name", "missing"}) if block is not None else None,
            "prompt_start": build_recursion.module_sha256(prompt) if prompt is not None else None,
        }
        | (cache.identity if cache is not None else {}),
        lm=lm,
        trackers=training.trackers,
        log=log,
        restart=restart,
    )
    if prompt is not None and block is not None:
        prompt.save(module_folder(config, block.name), lm)
    connector.save(folder, lm)
    log(f"connector saved: {folder}")
    parts.close()
    return {
        "module": str(folder),
        "prompt": str(module_folder(config, block.name)) if block is not None else None,
        "trained_parameters": trained,
        "examples": len(examples),
        "skipped": len(prepared) - len(examples),
        "rows_over_cache_budget": cache.counts.over_budget if cache is not None else None,
        "when": _tuned(config, model, plain, held_out, log) if held_out else None,
    } | summary(result)


def _tuned(
    config: c.NeuralRecursion, model: RecursiveLM, plain: SoftPrompt | None, dev: list[Prepared], log: Log
) -> dict[str, Any]:
    """The threshold below which recursion pays on dev, recorded."""
    windows = [one.packed for one in dev]
    made = recurred(config, NeuralRecursion(model, plain=plain, when=UNSURE_OF_ALL), windows)
    firsts = [one.plain for one in made if one.plain is not None]
    lasts = [one.generation.text for one in made]
    return tune_when(config, model.lm, dev, firsts, lasts, modules(model, plain), log)


def prompt_rate(training: c.NeuralTraining) -> dict[str, float]:
    """What `fit` takes as rates: the prompt's as a multiple of the connector's."""
    rate = training.prompt_learning_rate
    return {} if rate is None else {"prompt": rate / training.learning_rate}


def _starting_prompt(config: c.NeuralRecursion, lm: Any) -> SoftPrompt:
    """A new prompt, or the trained one that the block names."""
    block = config.prompt
    if block is None:
        raise ConfigError("this config has no prompt block")
    if block.start is None:
        init = initializer(block.init)
        return SoftPrompt.create(lm, block.length, init=init, position=block.position, seed=config.seed)
    folder = module_folder(config, block.start)
    if not folder.exists():
        raise CheckpointError(
            f"no trained prompt to start from at {folder}; train it first, in this workspace, or leave prompt.start out"
        )
    prompt = SoftPrompt.load(folder, lm)
    if (prompt.length, prompt.position) != (block.length, block.position):
        raise CheckpointError(
            f"prompt.start: {folder} holds a prompt of {prompt.length} tokens in {prompt.position} position, the "
            f"config asks for {block.length} in {block.position}; make them alike"
        )
    return prompt
