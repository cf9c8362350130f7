"""`frozenlm pretrain` for prompts: a soft prompt is trained on plain text before a task sees it, the LM frozen (PPT,
arXiv 2109.04332).

Our choices: examples of dev text, spread evenly over all of it, are held out; the best step is the one with the lowest
loss on them; the prompt of the config begins from the vectors of that step, whatever its kind makes of them.
"""

from __future__ import annotations

from typing import Any

import torch

from frozenlm.checkpoint import load_module
from frozenlm.context_cache import ContextCache
from frozenlm.lm_tasks import Example, mean_loss, prompt_loss
from frozenlm.prompts.soft_prompt import KIND, SoftPrompt
from frozenlm.prompts.text_pretraining import text_examples
from frozenlm.training import fit
from pipelines import build_prompts
from pipelines import config as c
from pipelines.build import Log, frozen_lm, module_folder
from pipelines.errors import CheckpointError, ConfigError
from pipelines.training.initializers import initializer
from pipelines.training.plain_text import held_out, texts
from pipelines.training.reader import digest
from pipelines.training.settings import loop_settings
from pipelines.training.summary import summary, trained_parameters


def pretrain_prompt(config: c.Multitask, *, restart: bool, log: Log) -> dict[str, Any]:
    """Pretrain a soft prompt for the config's prompt and save it into the workspace. An interrupted run goes on.

    Raises:
        ConfigError: no pretraining block, no text, texts that are too short, or windows beyond the LM's.
    """
    block, own = required(config)
    lm = frozen_lm(config.lm)
    found = text_examples(texts(block), lm, **block.wanted(), soft_tokens=own.length, seed=config.seed)
    count = len(found.examples)
    if block.dev_examples >= count:
        raise ConfigError(
            f"the text makes {count} examples, and pretraining.dev_examples holds {block.dev_examples} of them out; "
            "give more text, shorter windows or fewer dev_examples"
        )
    train, dev = ([found.examples[place] for place in places] for places in held_out(count, block.dev_examples))
    log(f"{len(train):,} examples of text for training, {len(dev)} for dev, {found.left_out} left out")
    prompt = SoftPrompt.create(
        lm,
        own.length,
        init=initializer(own.init, config.workspace_path / "modules"),
        position=own.position,
        seed=config.seed,
    )
    read = ContextCache(lm) if lm.kind == "decoder" else None  # dev contexts, for suffix prompts
    with torch.no_grad():
        without, before = (mean_loss(lm, one, dev, memory_cache=read) for one in (None, prompt))
    log(f"dev loss: {without:.4f} without a prompt, {before:.4f} with the one that training begins with")

    def loss(batch: list[Example]) -> tuple[torch.Tensor, int]:
        return prompt_loss(lm, prompt, batch)

    folder = module_folder(config, block.name)
    result = fit(
        prompt,
        examples=train,
        loss=loss,
        out=folder.parent / f"{block.name}.run",
        settings=loop_settings(block, config.seed),
        evaluate=lambda: -mean_loss(lm, prompt, dev, memory_cache=read),
        identity={
            "examples": digest(train),
            "dev": digest(dev),
            "prompt": own.model_dump(mode="json", include={"length", "position", "init"}),
            **build_prompts.begins_with(config, own),
        },
        lm=lm,
        trackers=block.trackers,
        log=log,
        restart=restart,
    )
    prompt.save(folder, lm)
    log(f"prompt saved: {folder}; `frozenlm train` begins from it")
    return {
        "module": str(folder),
        "trained_parameters": trained_parameters(prompt),
        "examples": len(train),
        "left_out": found.left_out,
        "dev_loss_without_prompt": without,
        "dev_loss_before": before,
        "dev_loss": -result.best_score if result.best_score is not None else None,
    } | summary(result)


def required(config: c.Multitask) -> tuple[c.PromptPretraining, Any]:
    """The pretraining block, and that of the prompt it is for.

    Raises:
        ConfigError: there is none.
    """
    if config.pretraining is None or config.prompt is None:
        raise ConfigError("this config has no pretraining block; name the text to pretrain its prompt on")
    return config.pretraining, config.prompt


def begun(config: c.Multitask) -> c.Multitask:
    """The config with its prompt beginning from the pretrained one; without a pretraining block, the config as it is.

    Raises:
        CheckpointError: not pretrained yet, damaged, or with another position.
    """
    if config.pretraining is None or config.prompt is None:
        return config
    folder = module_folder(config, config.pretraining.name)
    if not folder.exists():
        raise CheckpointError(
            f"no pretrained prompt at {folder}; run `frozenlm pretrain CONFIG` from this directory, or set "
            "pretraining=null to begin without"
        )
    position = load_module(folder, kind=KIND)[1].get("position")
    if position != config.prompt.position:
        raise CheckpointError(
            f"{folder} was pretrained in {position} position, the config asks for {config.prompt.position}; set it "
            "back, or pretrain again with --restart"
        )
    start = c.FromModule(kind="module", name=config.pretraining.name)
    return config.model_copy(update={"prompt": config.prompt.model_copy(update={"init": start})})
