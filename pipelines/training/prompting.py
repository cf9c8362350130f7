"""Trains what is learned about a prompting: soft slots, a verbalizer of label vectors, or both (`LearnedPrompt`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from frozenlm.prompting.classify import accuracy, label_place
from frozenlm.prompting.demonstrations import check_shown
from frozenlm.saved_bytes import saved_bytes
from frozenlm.training import fit
from pipelines import build_prompting
from pipelines import config as c
from pipelines.build import Log, frozen_encoder, module_folder
from pipelines.config_prompting import NOTHING_TO_TRAIN
from pipelines.config_tasks import task_spec
from pipelines.errors import ConfigError
from pipelines.training.kept_bytes import KeptBytes
from pipelines.training.settings import loop_settings
from pipelines.training.summary import kept_parameters, of_loop, of_steps, trained_parameters

if TYPE_CHECKING:
    from frozenlm.prompting.filled import Filled

Question = tuple["Filled", int]
"""What the LM reads, and the place of its label."""


def train_prompting(config: c.PromptingJob, *, restart: bool, log: Log) -> dict[str, Any]:
    """Train on the task's train split and save into the workspace. The dev split chooses the best step.

    Raises:
        ConfigError: nothing is learned, no training block, no such split, a damaged record, a word that the LM
            cannot write, or demonstrations that do not fit.
        FrozenViolationError: the LM changed.
    """
    block, training = config.prompting, config.training
    if not block.learns:
        raise ConfigError(NOTHING_TO_TRAIN)
    if training is None:
        raise ConfigError("training needs a training block")
    train, dev = (
        [record for _, record in build_prompting.labelled_records(config, split, log)] for split in ("train", "dev")
    )
    dev = dev[: training.dev_limit]
    host = build_prompting.host(config)
    encoder = frozen_encoder(config.encoder) if config.encoder is not None and block.needs_encoder else None
    learned = build_prompting.new_learned(config, host)
    trained = trained_parameters(learned)
    log(f"{' and '.join(name for name, _ in learned.named_children())}: {trained:,} trained parameters")
    asked = build_prompting.ensemble(config, lambda: encoder.vectors, learned)  # type: ignore[union-attr]
    (prompt,) = asked.members
    learned.to(host.device)
    labels, name = prompt.verbalizer.labels, task_spec(config.task).label
    with torch.no_grad():
        filled = prompt.fill(host, train)
    check_shown(filled)
    examples: list[Question] = [
        (one, label_place(record, name, labels, f"record {record['id']}"))
        for one, record in zip(filled, train, strict=True)
    ]
    cut, dropped = sum(one.cut > 0 for one in filled), sum(one.dropped for one in filled)
    if cut:
        log(f"too long, of {len(train)} inputs: {cut} cut")
    if dropped:
        log(f"{dropped} demonstrations of {len(train)} inputs dropped, for which there is no room")
    folder = module_folder(config, block.name)
    run = folder.parent / f"{block.name}.run"
    kept = KeptBytes(run, restart=restart)

    def loss(batch: list[Question]) -> tuple[torch.Tensor, int]:
        with saved_bytes(host.model) as saved:
            value, units = learned.loss(host, prompt, [one for one, _ in batch], [place for _, place in batch])
        kept.add(saved.total)
        return value, units

    def score() -> float:
        found = accuracy(asked.classify(host, dev), dev, label=name)
        log(f"dev: {found:.3f}")
        return found

    result = fit(
        learned,
        examples=examples,
        loss=loss,
        out=run,
        settings=loop_settings(training, config.seed),
        evaluate=score,
        identity={
            "train": _digest(train),
            "dev": _digest(dev),
            "lm": host.fingerprint,
            "encoder": encoder.fingerprint if encoder is not None else None,
            **config.model_dump(mode="json", include={"prompting", "input"}),
            "words": sorted(build_prompting.label_words(config.task).items()),
            "template": config.task.template,
        },
        trackers=training.trackers,
        log=log,
        restart=restart,
    )
    host.assert_unchanged()
    log(str(host.verify()))
    learned.save(folder, host)
    log(f"saved: {folder}")
    return {
        "module": str(folder),
        "trained_parameters": trained,
        "kept_parameters": kept_parameters(folder),
        "examples": len(train),
        "inputs_cut": cut,
        "demonstrations_dropped": dropped,
        **of_loop(result),
        **of_steps(result, kept, learned, log),
        "lm_weights_changed": host.verify().changed,
    }


def _digest(records: Sequence[build_prompting.Record]) -> str:
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode(errors="surrogatepass")).hexdigest()
