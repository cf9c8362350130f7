"""A model without its weights: its config from a folder, from the hub's cache or from fields, built on the meta device.

Nothing is downloaded and nothing allocated: 7 billion parameters take as little as seven thousand. `shapes.py` counts
the FLOPs of what is built here, `footprint.py` the bytes that training it keeps.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.loading import encoder_class, lm_class

Use = Literal["lm", "encoder", "cross_encoder"]
_ANYWHERE = ("model_type", "architectures", "torch_dtype", "transformers_version")  # in every config.json


def find_config(path_or_id: str | Path, *, revision: str | None = None) -> Any | None:
    """The config of a local folder, or of a hub model that has been downloaded before; None where it is neither.

    Raises: CheckpointError for a folder whose config.json is missing or damaged.
    """
    folder = Path(path_or_id).expanduser()
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json; expected a folder saved by transformers")
    try:
        return AutoConfig.from_pretrained(
            str(folder if local else path_or_id),
            revision=None if local else revision,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        if not local:
            return None
        raise CheckpointError(f"cannot load the config of {folder}: {type(error).__name__}: {error}") from error


def config_from_fields(fields: Mapping[str, Any]) -> Any:
    """A config from the fields of a config.json, `model_type` among them; what is not given is the type's default.

    Raises: ConfigError for an unknown type, a field that the type does not have, or a value that it refuses.
    """
    given = dict(fields)
    kind = given.pop("model_type", None)
    if not isinstance(kind, str):
        raise ConfigError(f"an architecture needs a model_type (llama, gpt2, t5, ...), got the fields {sorted(fields)}")
    try:
        known = AutoConfig.for_model(kind)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(f"transformers knows no model_type {kind!r}: {str(error)[:200]}") from error
    names = {*known.to_dict(), *known.attribute_map, *_ANYWHERE}
    unknown = [name for name in given if name not in names and not name.endswith("_token_id")]
    if unknown:
        raise ConfigError(f"a {kind} model has no config field {', '.join(unknown)}; it has {', '.join(sorted(names))}")
    try:
        return AutoConfig.for_model(kind, **given)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"this {kind} architecture cannot be: {' '.join(str(error).split())}") from error


def meta_model(config: Any, use: Use, *, dtype: torch.dtype | None = None) -> Any:
    """The model of a config on the meta device, in eval mode; of an encoder-decoder used as encoder, that half.

    use: "lm" with its head; "encoder" without any; "cross_encoder" with a head of one number
    dtype: of the weights; None is the config's own

    Raises: ConfigError when transformers has no such model, or cannot build it.
    """
    with torch.device("meta"):
        return _build(config, use, dtype)


@contextmanager
def pretended_model(config: Any, use: Use, *, dtype: torch.dtype | None = None) -> Iterator[Any]:
    """As `meta_model`, but it runs as it would on a CPU, with the same attention kernel, and only pretends to compute;
    inside the block alone. Three times slower than the meta device.

    Raises: ConfigError as `meta_model`.
    """
    with FakeTensorMode():
        yield _build(config, use, dtype)


def _build(config: Any, use: Use, dtype: torch.dtype | None) -> Any:
    kind = config.model_type
    try:
        if use == "cross_encoder":
            config = copy(config)
            config.num_labels = 1
            auto: Any = AutoModelForSequenceClassification
        else:
            auto = (lm_class if use == "lm" else encoder_class)(config, f"a {kind} config")
        model = auto.from_config(config, dtype=dtype or getattr(config, "dtype", None) or torch.float32)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"a {kind} model cannot be built as {use}: {reason}; check its config") from error
    model = model.get_encoder() if use == "encoder" and config.is_encoder_decoder else model
    return model.eval().requires_grad_(False)
