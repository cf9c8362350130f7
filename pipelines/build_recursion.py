"""From the config blocks of recursion to the objects they name, and the tuned threshold on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import config as c
from pipelines.build import Log, module_folder
from pipelines.delimiters import Delimiters, split_template
from pipelines.errors import CheckpointError, ConfigError
from retrievers.metrics import squad_normalized

if TYPE_CHECKING:
    from torch import nn

    from frozenlm.lm import FrozenLM
    from frozenlm.prompts.soft_prompt import SoftPrompt
    from frozenlm.recursion.candidates import Normal
    from frozenlm.recursion.connector import Connector
    from frozenlm.recursion.pass_cache import FirstPassCache
    from frozenlm.recursion.sizes import ConnectorSizes
    from frozenlm.recursion.textual import Sampling, TextualRecursion
    from frozenlm.recursion.when import TunedThreshold, When

THRESHOLD = "second_pass_threshold"


def sizes(block: c.Connector) -> ConnectorSizes:
    """What the connector of a config is made of."""
    from frozenlm.recursion.sizes import ConnectorSizes

    return ConnectorSizes(**block.model_dump(exclude={"name", "missing"}))


def new_connector(config: c.NeuralRecursion, lm: FrozenLM) -> Connector:
    """A connector before any training: with it all passes together say what one pass says.

    Raises:
        ConfigError: an LM that is not decoder-only, or sizes that do not go together.
    """
    from frozenlm.recursion.connector import Connector

    return Connector.create(lm, sizes(config.connector), seed=config.seed)


def connector(config: c.NeuralRecursion, lm: FrozenLM, log: Log) -> Connector:
    """The trained connector of a config; where there is none and the block says `untrained`, a new one.

    Raises:
        ConfigError: an LM that is not decoder-only.
        CheckpointError: not trained yet and `missing: error`; damaged; of another LM, number of passes or size.
    """
    block = config.connector
    folder = module_folder(config, block.name)
    if folder.exists():
        return _load(config, folder, lm)
    if block.missing == "error":
        from frozenlm.recursion.sizes import require_decoder

        require_decoder(lm)
        raise CheckpointError(
            f"no trained connector at {folder}; run `frozenlm train CONFIG` from this directory (`frozenlm pretrain "
            "CONFIG` comes before it), or set connector.missing=untrained to run one that changes nothing"
        )
    log(f"no trained connector at {folder}: an untrained one, which changes nothing (connector.missing: untrained)")
    return new_connector(config, lm)


def starting_connector(config: c.NeuralRecursion, lm: FrozenLM, log: Log) -> tuple[Connector, str]:
    """The connector that training begins with, and the SHA-256 of its weights.

    Raises:
        ConfigError: an LM that is not decoder-only; no pretraining block, and `missing: error`.
        CheckpointError: not pretrained yet and `missing: error`; damaged; of another LM, number of passes or size.
    """
    from frozenlm.recursion.sizes import require_decoder

    require_decoder(lm)
    block, pretraining = config.connector, config.pretraining
    if pretraining is not None and (folder := module_folder(config, pretraining.name)).exists():
        found = _load(config, folder, lm)
        log(f"connector: pretrained, from {folder}")
    elif block.missing == "untrained":
        found = new_connector(config, lm)
        log("connector: not pretrained (connector.missing: untrained)")
    elif pretraining is None:
        raise ConfigError(
            "this config has no pretraining block, so its connector would begin untrained, which the paper found not "
            "to work; add one, or set connector.missing=untrained to go on without"
        )
    else:
        raise CheckpointError(
            f"no pretrained connector at {folder}; run `frozenlm pretrain CONFIG` from this directory, or set "
            "connector.missing=untrained to begin with an untrained one"
        )
    return found, module_sha256(found)


def _load(config: c.NeuralRecursion, folder: Path, lm: FrozenLM) -> Connector:
    from frozenlm.recursion.connector import Connector

    found = Connector.load(folder, lm, passes=config.connector.passes)
    wanted = replace(sizes(config.connector).filled(found.state_size), dropout=found.sizes.dropout)
    if found.sizes != wanted:
        there, here = asdict(found.sizes), asdict(wanted)
        differing = [
            f"{name} {there[name]} (the config asks for {here[name]})" for name in here if there[name] != here[name]
        ]
        raise CheckpointError(
            f"{folder} holds a connector of another size: {', '.join(differing)}; train it again with --restart, or "
            "give it another name"
        )
    return found


def module_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def first_pass_cache(config: c.NeuralRecursion, lm: FrozenLM, rows: Any, run: str, log: Log) -> FirstPassCache | None:
    """The states of pass 1 on disk, computed now as far as they are not there; None where the config says off.

    Args:
        rows: makes what pass 1 reads; called only where it is kept.
        run: name of the module that is trained; what its last training kept for other data is removed.
    """
    block = config.first_pass_cache
    if block.kind == "off":
        return None
    from frozenlm.recursion.pass_cache import FirstPassCache

    folder = config.workspace_path / "cache" / "first_pass"
    return FirstPassCache(lm, rows(), folder=folder, dtype=block.dtype, byte_budget=block.byte_budget, run=run, log=log)


def sampling(config: c.TextualRecursion) -> Sampling:
    """How candidates are drawn."""
    from frozenlm.recursion.textual import Sampling

    return Sampling(
        max_new_tokens=config.generation.max_new_tokens,
        stop=tuple(config.generation.stop),
        seed=config.seed,
        **config.candidates.model_dump(exclude={"form"}),
    )


def textual(
    config: c.TextualRecursion,
    lm: FrozenLM,
    *,
    first: SoftPrompt | None,
    second: SoftPrompt | None,
    when: When | None = None,
) -> TextualRecursion:
    """Both passes of a config with these prompts.

    Raises:
        ConfigError: answers may be longer than the room kept for them.
    """
    from frozenlm.recursion.candidates import plain_form
    from frozenlm.recursion.second_pass import SecondPassTemplate
    from frozenlm.recursion.textual import TextualRecursion

    block, packing = config.second_pass, config.packing
    normal: Normal = squad_normalized if config.candidates.form == "answer" else plain_form
    parsed = [
        *split_template(block.template, frozenset({"candidates", "question"})),
        *split_template(packing.passage, frozenset({"title", "text"})),
    ]
    delimiters = Delimiters.of([packing.opening, *(literal for literal, _ in parsed)])
    return TextualRecursion(
        lm,
        first=first,
        second=second,
        template=SecondPassTemplate(
            text=block.template, separator=block.separator, order=block.order, none=block.none, seed=config.seed
        ),
        sampling=sampling(config),
        when=when,
        normalize=normal,
        clean=lambda text: delimiters.neutralise(text)[0],
        answer_reserve=packing.answer_reserve,
        max_tokens=packing.max_tokens,
        batch_tokens=config.generation.batch_tokens,
    )


Recursion = c.TextualRecursion | c.NeuralRecursion


def threshold_folder(config: Recursion) -> Path:
    """Where training records the threshold that it tuned."""
    if isinstance(config, c.NeuralRecursion):
        return module_folder(config, f"{config.connector.name}.when")
    prompt = config.second_pass.prompt
    return module_folder(config, f"{prompt.name if prompt is not None else 'second_pass'}.when")


def save_threshold(
    config: Recursion, lm: FrozenLM, tuned: TunedThreshold, modules: Mapping[str, Any], questions: int
) -> Path:
    """Record a threshold with the dev figures behind it and the modules it was tuned for (see `when`)."""
    import torch

    from frozenlm.checkpoint import save_module

    folder = threshold_folder(config)
    figures = {name: value for name, value in asdict(tuned).items() if name != "threshold"}
    facts = {"price": config.when.price, "max_share": config.when.max_share, **modules, "questions": questions}
    tensor = torch.tensor([tuned.threshold], dtype=torch.float64)
    save_module(folder, {"threshold": tensor}, {**facts, "dev": figures}, lm_fingerprint=lm.fingerprint, kind=THRESHOLD)
    return folder


def tuned_share(config: Recursion) -> float | None:
    """The share of dev questions that pay with the threshold that training tuned; None where the config gives one, or
    none is tuned for its price.

    Raises:
        CheckpointError: the record is damaged.
    """
    from frozenlm.checkpoint import load_module

    block, folder = config.when, threshold_folder(config)
    if block.threshold is not None or not folder.exists():
        return None
    _, facts = load_module(folder, kind=THRESHOLD)
    tuned = (facts.get("price"), facts.get("max_share")) == (block.price, block.max_share)
    return float(facts["dev"]["share"]) if tuned else None


def when(config: Recursion, lm: FrozenLM, modules: Mapping[str, Any]) -> When:
    """Which questions recurse; a threshold that the config leaves open comes from the workspace.

    Args:
        modules: SHA-256 of what the answers depend on: `prompts` of both passes, and the `connector`.

    Raises:
        CheckpointError: no threshold has been tuned, or for other modules or prices.
    """
    from frozenlm.checkpoint import load_module
    from frozenlm.recursion.when import When

    block = config.when
    if block.rule == "always" or block.threshold is not None:
        return When(block.rule, block.threshold)
    folder = threshold_folder(config)
    if not folder.exists():
        raise CheckpointError(
            f"no tuned threshold at {folder}; run `frozenlm train CONFIG` with dev questions from this directory, or "
            "set when.threshold"
        )
    tensors, facts = load_module(folder, kind=THRESHOLD, lm_fingerprint=lm.fingerprint)
    wanted = {"price": block.price, "max_share": block.max_share, **modules}
    if differing := [name for name, value in wanted.items() if facts.get(name) != value]:
        raise CheckpointError(
            f"the threshold at {folder} was tuned with other {' and '.join(differing)}; run `frozenlm train CONFIG` "
            "again, or set when.threshold"
        )
    return When(block.rule, float(tensors["threshold"][0]))
