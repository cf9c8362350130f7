"""Trains a head, and a delta where there is one, on a frozen encoder; P-tuning v2 (arXiv 2110.07602), section 3.3."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from frozenlm.encoder_tasks import LabelledText, classification_loss, predict
from frozenlm.saved_bytes import saved_bytes
from frozenlm.train_settings import TrainSettings
from frozenlm.training import FitResult, fit
from pipelines import config as c
from pipelines.build import Log, frozen_encoder, module_folder
from pipelines.build_classification import labelled_texts, new_tuned
from pipelines.errors import ConfigError
from pipelines.training.kept_bytes import KeptBytes
from pipelines.training.phases import fit_in_phases
from pipelines.training.settings import loop_settings
from pipelines.training.summary import kept_parameters, of_loop, of_steps, trained_parameters


def train_classification(config: c.Classification, *, restart: bool, log: Log) -> dict[str, Any]:
    """Train what stands around the encoder and save it into the workspace.

    Raises:
        ConfigError: no training block, no row, a label that only the dev split has.
        FrozenViolationError: the encoder changed.
    """
    training = config.training
    if training is None:
        raise ConfigError("training needs a training block")
    rows = labelled_texts(config, "train", log=log)
    train, labels = [text for _, text in rows], rows[0][0].choices
    dev = [text for _, text in labelled_texts(config, "dev", log=log)][: training.dev_limit]
    encoder = frozen_encoder(config.encoder)
    tuned: Any = new_tuned(config, encoder, labels)
    what = "head alone" if config.delta is None else f"head and {config.delta.kind}"
    trained = trained_parameters(tuned)
    log(f"{what}: {trained:,} trained parameters")
    folder = module_folder(config, config.name)
    kept = KeptBytes(folder.parent / f"{config.name}.run", restart=restart)

    def loss(batch: list[LabelledText]) -> tuple[torch.Tensor, int]:
        with saved_bytes(encoder.model) as saved:
            value, units = classification_loss(encoder, tuned.head, tuned.delta, batch)
        kept.add(saved.total)
        return value + units * tuned.delta.penalty() if hasattr(tuned.delta, "penalty") else value, units

    def score() -> float:
        found = predict(encoder, tuned.head, tuned.delta, dev)
        accuracy = sum(one.label == row.label for one, row in zip(found, dev, strict=True)) / len(dev)
        log(f"dev: {accuracy:.3f}")
        return accuracy

    cut_before = encoder.truncated

    def fitted(settings: TrainSettings, run: str, rates: Mapping[str, float]) -> FitResult:
        return fit(
            tuned,
            examples=train,
            loss=loss,
            out=folder.parent / f"{config.name}.{run}",
            settings=settings,
            rates={f"delta.{name}": multiple for name, multiple in rates.items()} | {"head": config.head_rate},
            evaluate=score,
            identity=identity,
            trackers=training.trackers,
            log=log,
            restart=restart,
        )

    def prune() -> None:
        tuned.delta = tuned.delta.pruned()

    identity = {
        "train": _digest(train),
        "dev": _digest(dev),
        "delta": None
        if config.delta is None
        else config.delta.model_dump(mode="json", exclude={"lower_states": {"byte_budget"}}),
        "labels": list(labels),
        "pool": config.pool,
        "encoder": encoder.fingerprint,
        "max_length": config.encoder.max_length,
    }
    result = fit_in_phases(fitted, loop_settings(training, config.seed), config.delta, prune)
    encoder.assert_unchanged()
    log(str(encoder.verify()))
    tuned.save(folder, encoder)
    log(f"saved: {folder}")
    return {
        "module": str(folder),
        "trained_parameters": trained,
        "kept_parameters": kept_parameters(folder),
        "examples": len(train),
        "inputs_cut": encoder.truncated - cut_before,
        **of_loop(result),
        **of_steps(result, kept, tuned.delta, log),
        "encoder_weights_changed": encoder.verify().changed,
    }


def _digest(texts: Sequence[LabelledText]) -> str:
    lines = json.dumps([[one.text, one.text_b, one.label] for one in texts])
    return hashlib.sha256(lines.encode(errors="surrogatepass")).hexdigest()
