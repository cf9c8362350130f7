"""Loading a transformers LM or encoder from a folder or the hub, with one clear error for each way it can go wrong.

`trust_remote_code` is always off. A folder is read without any network. safetensors weights are preferred; where a
checkpoint has only PyTorch files, transformers reads them with `weights_only=True`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.utils import logging

from frozenlm.errors import CheckpointError, ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AttnImplementation = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
"""As transformers names them; "auto" leaves the choice to it."""
_NOISE = threading.Lock()


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: not a device, or CUDA asked for and absent.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; use 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but torch sees no CUDA device; use 'auto' or 'cpu'")
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """`auto` is the checkpoint's own dtype on CUDA and float32 on the CPU.

    float32 on the CPU is our choice: it is exact for bf16 checkpoints, and answers do not drift with the batch's shape.

    Raises:
        ConfigError: not one of auto, float32, bfloat16, float16.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; use 'auto', {', '.join(map(repr, DTYPES))}")
    return DTYPES[dtype]


def moved(model: Any, *, dtype: str, device: str) -> Any:
    """A model that is already loaded, itself moved; "auto" leaves it as it is, or where it is.

    Raises:
        ConfigError: as `resolve_device` and `resolve_dtype`.
    """
    if device != "auto":
        model = model.to(resolve_device(device))
    return model if dtype == "auto" else model.to(resolve_dtype(dtype, model.device))


def load_pretrained(
    path_or_id: str | Path, *, revision: str | None, dtype: str, device: str, attn_implementation: str = "auto"
) -> tuple[Any, Any]:
    """Load the model and its tokenizer.

    Args:
        path_or_id: a folder, or the id of a model on the hub.
        revision: branch, tag or commit on the hub.
        attn_implementation: one of `AttnImplementation`.

    Returns:
        (model on its device, tokenizer).

    Raises:
        CheckpointError: no such folder or model; config, weights or tokenizer missing or damaged.
        ConfigError: not a causal or seq2seq LM; unknown dtype or device; an attention that is unknown, or that the
            model or the machine lacks.
    """
    options: dict[str, Any] = {"revision": revision, "dtype": dtype, "device": device}
    return _load_both(path_or_id, lm_class, "LM", attn_implementation=attn_implementation, **options)


def load_encoder(
    path_or_id: str | Path, *, revision: str | None, dtype: str, device: str, attn_implementation: str = "auto"
) -> tuple[Any, Any]:
    """Load a text encoder and its tokenizer; of an encoder-decoder, the encoder half.

    A pooler that the checkpoint lacks is no error: nothing here reads it.

    Args:
        path_or_id, revision, dtype, device, attn_implementation: as `load_pretrained`.

    Returns:
        (model on its device, tokenizer).

    Raises:
        CheckpointError: as `load_pretrained`.
        ConfigError: a kind of model that transformers does not know; unknown dtype or device.
    """
    options: dict[str, Any] = {"revision": revision, "dtype": dtype, "device": device, "spare": "pooler."}
    model, tokenizer = _load_both(
        path_or_id, encoder_class, "encoder", attn_implementation=attn_implementation, **options
    )
    return (model.get_encoder() if model.config.is_encoder_decoder else model), tokenizer


def load_masked(path_or_id: str | Path, *, revision: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    """Load a masked LM and its tokenizer. Arguments and errors as `load_pretrained`."""
    return _load_both(path_or_id, masked_class, "masked LM", revision=revision, dtype=dtype, device=device)


def _load_both(
    path_or_id: str | Path,
    choose: Callable[[Any, str], Any],
    what: str,
    *,
    revision: str | None,
    dtype: str,
    device: str,
    attn_implementation: str = "auto",
    spare: str | None = None,
) -> tuple[Any, Any]:
    """choose: (config, source) -> the Auto class; what: the model in messages; spare: prefix of weights it may lack."""
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    if attn_implementation not in get_args(AttnImplementation):
        known = ", ".join(get_args(AttnImplementation))
        raise ConfigError(f"unknown attn_implementation {attn_implementation!r}; use one of {known}")
    attention = {} if attn_implementation == "auto" else {"attn_implementation": attn_implementation}
    source, local = _source(path_or_id, what)
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    if revision is not None and not local:
        options["revision"] = revision
    config = _load("config", lambda: AutoConfig.from_pretrained(source, **options), source)
    auto = choose(config, source)
    tokenizer = _load_tokenizer(source, options)
    model, report = _load(
        "weights",
        lambda: auto.from_pretrained(
            source,
            config=config,
            dtype=kind,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **attention,
            **options,
        ),
        source,
    )
    missing = sorted(key for key in report["missing_keys"] if spare is None or not key.startswith(spare))
    if missing:
        raise CheckpointError(
            f"{source}: the checkpoint lacks {len(missing)} of the {what}'s weights, e.g. {missing[0]!r}"
        )
    if report["mismatched_keys"]:
        name, stored, expected = min(report["mismatched_keys"])
        raise CheckpointError(
            f"{source}: config and weights do not belong together: {name!r} is {list(stored)} in the checkpoint, "
            f"{list(expected)} by config.json"
        )
    return model.to(where), tokenizer


def _source(path_or_id: str | Path, what: str) -> tuple[str, bool]:
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{path} holds no config.json; expected a folder saved by transformers' save_pretrained"
            )
        return str(path), True
    text = str(path_or_id)
    looks_like_path = isinstance(path_or_id, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_like_path or path.exists():
        raise CheckpointError(
            f"no {what} folder at {path}; give a folder with config.json, or a hub id such as 'org/name'"
        )
    return text, False


def lm_class(config: Any, source: str) -> Any:
    """The Auto class of an LM that generates text.

    Raises:
        ConfigError: a model of another kind; `source` names it.
    """
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    kind = config.model_type
    encoder_only = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or encoder_only:
        raise ConfigError(
            f"{source} is a {kind!r} model, which does not generate text; "
            "FrozenLM needs a decoder-only or encoder-decoder LM (GPT-2, OPT, Llama, Qwen, T5, BART, ...)"
        )
    return AutoModelForCausalLM


def masked_class(config: Any, source: str) -> Any:
    """The Auto class of an LM that fills masks.

    Raises:
        ConfigError: a model of another kind; `source` names it.
    """
    if config.is_encoder_decoder or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ConfigError(
            f"{source} is a {config.model_type!r} model, which does not fill masks; use BERT, RoBERTa or their kin"
        )
    return AutoModelForMaskedLM


def encoder_class(config: Any, source: str) -> Any:
    """The Auto class of a text encoder; of an encoder-decoder, the whole or its encoder half.

    Raises:
        ConfigError: a model of another kind; `source` names it.
    """
    if config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:  # of T5 and its kin, the encoder half alone
        return AutoModelForTextEncoding
    if config.model_type not in MODEL_MAPPING_NAMES:
        raise ConfigError(
            f"{source} is a {config.model_type!r} model, which is not a text encoder; use T5, BERT or one of their kin"
        )
    return AutoModel


def _load_tokenizer(source: str, options: dict[str, Any]) -> Any:
    folder = Path(source)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
    # Without this check transformers makes an empty tokenizer from the model type alone.
    if options["local_files_only"] and not any((folder / name).is_file() for name in names):
        raise CheckpointError(
            f"{source} holds no tokenizer ({names[0]} or the like); save the model's tokenizer beside it"
        )
    return _load("tokenizer", lambda: AutoTokenizer.from_pretrained(source, **options), source)


@contextmanager
def _no_noise() -> Iterator[None]:
    """Without transformers' bars over the weights, which take a moment and tell nothing, and without its table of
    missing weights, of which we speak ourselves. A hub's downloads keep their bars, and so does everything that the
    user loads elsewhere."""
    with _NOISE:
        hook = logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
        level = logging.get_verbosity()
        logging.set_verbosity(max(level, logging.ERROR))
        try:
            yield
        finally:
            logging.set_verbosity(level)
            logging.set_tqdm_hook(hook)


def _load(what: str, read: Any, source: str) -> Any:
    try:
        with _no_noise():
            return read()
    except ImportError as error:  # of an attention or a tokenizer that stands in a package of its own
        raise ConfigError(f"cannot load the {what} of {source}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot load the {what} of {source}: {type(error).__name__}: {error}") from error
