"""`frozenlm export` and `frozenlm import`: what a config trains, as files of the library `peft`, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from frozenlm.saved_parts import PARTS_FILE, verify_parts
from pipelines import build_tasks
from pipelines import config as c
from pipelines.build import Log, frozen_encoder, frozen_lm, module_folder, soft_prompt
from pipelines.build_classification import trained_tuned
from pipelines.build_deltas import check_asked_for
from pipelines.errors import CheckpointError, ConfigError
from pipelines.training.summary import trained_parameters

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM
    from frozenlm.prompts.soft_prompt import SoftPrompt

_PROMPTS = ("soft_prompt", "p_tuning", "prefix_tuning", "p_tuning_v2")
PEFT_KINDS = (*_PROMPTS, "lora", "rslora", "dora", "loha", "lokr", "vera", "ia3")


def export_peft(config: Any, out: Path | str | None = None, *, log: Log = lambda _: None) -> dict[str, Any]:
    """Write the trained prompt or delta of a config so that `PeftModel.from_pretrained(model, out)` runs it.

    Args:
        out: a new folder; None for one beside the trained module, `NAME.peft`.

    Returns:
        `kind`, `folder` and `base_model`.

    Raises:
        ConfigError: a config of another kind, or a method that peft does not have in this form.
        CheckpointError: not trained yet, or a folder that is not empty or cannot be written.
    """
    block = _block(config)
    if isinstance(config, c.Classification):
        out = _new_folder(out, module_folder(config, config.name))
        encoder = frozen_encoder(config.encoder)
        log("the delta alone is exported: peft's file has no place for the head")
        return _written(trained_tuned(config, encoder).delta, block.kind, out, encoder, config.encoder.model, log)
    out = _new_folder(out, module_folder(config, block.name))
    lm = frozen_lm(config.lm)
    if isinstance(config, c.Multitask):
        module: Any = build_tasks.trained_module(config, block, lm, None)
    else:
        module = soft_prompt(config, block.model_copy(update={"missing": "error"}), lm)
    return _written(module, block.kind, out, lm, config.lm.model, log)


def export_module(
    folder: Path | str,
    out: Path | str | None = None,
    *,
    lm: str | None = None,
    encoder: str | None = None,
    log: Log = lambda _: None,
) -> dict[str, Any]:
    """`export_peft` of a module's folder, such as those that `compare-methods` leaves, without the config it came from.

    Args:
        folder: of the module, or of a head and the delta beside it.
        lm, encoder: the model it was trained for, one of the two, as it is saved; one that was loaded in another dtype
            or revision is known to its config alone.

    Raises:
        ConfigError: no model or two, or a method that peft does not have.
        CheckpointError: damaged, of another model, or a folder that is not empty or cannot be written.
    """
    from frozenlm.checkpoint import verify_module
    from frozenlm.deltas.catalogue import methods

    if bool(lm) == bool(encoder):
        raise ConfigError(f"{folder} does not say where its model lies; name it with --lm MODEL, or --encoder MODEL")
    folder = Path(folder)
    parts = verify_parts(folder) if (folder / PARTS_FILE).exists() else {"": verify_module(folder).kind}
    part, kind = next((one for one in parts.items() if one[0] in ("", "delta")), ("", " and ".join(parts.values())))
    found = next((one for one in methods() if one.kind == kind and one.peft_type is not None), None)
    if found is None:
        raise ConfigError(f"peft has no form for {folder}, which holds {kind}; expected one of {', '.join(PEFT_KINDS)}")
    out = _new_folder(out, folder)
    block = c.LM(model=lm) if lm else c.FrozenEncoder(model=str(encoder))
    host: Any = frozen_lm(block) if isinstance(block, c.LM) else frozen_encoder(block)
    module = found.module_class.load(folder / part, host).eval()
    return _written(module, getattr(module, "method", kind), out, host, block.model, log)


def import_peft(config: Any, folder: Path | str, *, restart: bool = False, log: Log = lambda _: None) -> dict[str, Any]:
    """Read a folder that peft wrote into the workspace, as what the config would have trained.

    Args:
        restart: replace what has been trained or imported there, an unfinished training too.

    Returns:
        `kind`, `module` (folder) and `trained_parameters`.

    Raises:
        ConfigError: a config of another kind, a method that peft does not have in this form, or a training that goes on
            there.
        CheckpointError: a file that is missing, damaged, of another method or LM; or a module that is there already.
    """
    from frozenlm.train_state import RunFolder

    block = _block(config)
    if isinstance(config, c.Classification):
        raise ConfigError("peft's file has no head, and a config of kind classification trains one; train it here")
    target = module_folder(config, block.name)
    run = RunFolder(target.with_name(f"{block.name}.run"), {})
    there = target if target.exists() else run.folder if run.has_state else None
    if there is not None and not restart:
        raise CheckpointError(f"{there} is there already; give --restart to replace it, or another name")
    lm = frozen_lm(config.lm)
    module: Any
    if block.kind == "soft_prompt":
        module = _soft_prompt(Path(folder), lm)
    elif block.kind == "p_tuning":
        raise ConfigError("peft's files hold no prompt encoder; import the vectors as a prompt of kind soft_prompt")
    elif block.kind in ("prefix_tuning", "p_tuning_v2"):
        from frozenlm.deltas.p_tuning_v2 import PTuningV2
        from frozenlm.deltas.prefix_peft_format import prefix_from_peft

        module = prefix_from_peft(folder, lm)
        module = module if block.kind == "prefix_tuning" else PTuningV2(module(), position_offset=True)
    else:
        from frozenlm.deltas.peft_files import import_peft as of_peft

        module = of_peft(folder, lm)
        if module.method != block.kind:
            raise CheckpointError(f"{folder} holds {module.method}, the config asks for {block.kind}; name it so there")
    if getattr(module, "length", None) != getattr(block, "length", None):
        raise CheckpointError(
            f"{folder} holds {module.length} soft tokens, the config asks for {block.length}; set its length to that"
        )
    if isinstance(block, c.DeltaBlock):
        check_asked_for(module, block, lm, Path(folder))
    if run.has_state:
        with run.locked():
            run.discard()  # so that a later `train` begins anew, and does not put the old run's weights back
    module.save(target, lm)
    lm.assert_unchanged()
    log(f"imported: {target}")
    return {"kind": block.kind, "module": str(target), "trained_parameters": trained_parameters(module)}


def _soft_prompt(folder: Path, lm: FrozenLM) -> SoftPrompt:
    """Peft's PROMPT_TUNING, or the vectors of its P_TUNING."""
    from frozenlm.prompts.peft_format import CONFIG_NAME, from_peft, read_config
    from frozenlm.prompts.peft_p_tuning import p_tuning_from_peft
    from frozenlm.prompts.soft_prompt import SoftPrompt

    if read_config(folder / CONFIG_NAME).get("peft_type") == "P_TUNING":
        return SoftPrompt(p_tuning_from_peft(folder, lm).vectors.detach(), position="prefix")
    return from_peft(folder, lm)


def _new_folder(out: Path | str | None, module: Path) -> Path:
    out = module.with_name(f"{module.name}.peft") if out is None else Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is there already and not empty; export into a new folder")
    return out


def _written(module: Any, kind: str, out: Path, host: Any, base: str, log: Log) -> dict[str, Any]:
    """In the format of peft's that the module has."""
    from frozenlm.deltas.p_tuning_v2 import PTuningV2
    from frozenlm.deltas.peft_files import export_peft as delta_to_peft
    from frozenlm.deltas.prefix_peft_format import prefix_to_peft
    from frozenlm.deltas.prefix_tuning import PrefixTuning
    from frozenlm.prompts.p_tuning import PTuning
    from frozenlm.prompts.peft_format import to_peft
    from frozenlm.prompts.peft_p_tuning import p_tuning_to_peft
    from frozenlm.prompts.slots import SlottedPrompt
    from frozenlm.prompts.soft_prompt import SoftPrompt

    if isinstance(module, SoftPrompt):
        to_peft(module, out, host, base_name=base)
    elif isinstance(module, PTuning | SlottedPrompt):
        p_tuning_to_peft(module, out, host, base_name=base)
    elif isinstance(module, PrefixTuning | PTuningV2):
        prefix_to_peft(module, out, host, base_name=base)
    else:
        delta_to_peft(module, out, host, base_name=base)
    log(f"exported: {out}")
    return {"kind": kind, "folder": str(out), "base_model": base}


def _block(config: Any) -> Any:
    if isinstance(config, c.Classification):
        block = config.delta
    else:
        block = config.trained if isinstance(config, c.Multitask) else getattr(config, "prompt", None)
    kind = getattr(block, "kind", None)
    takes = c.Multitask | c.Classification | c.FrozenReader | c.ClosedBook
    if not isinstance(config, takes) or kind not in PEFT_KINDS:
        raise ConfigError(
            f"peft has no form for {kind or 'nothing'} of a config of kind {config.kind}; expected one of "
            f"{', '.join(PEFT_KINDS)} of a config of kind multitask or classification, or the prompt of a reader"
        )
    position = getattr(block, "position", "prefix")
    if position != "prefix":
        raise ConfigError(f"peft puts soft prompts before the text, this one's position is {position}; train a prefix")
    return block
