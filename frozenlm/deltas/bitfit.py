"""BitFit: Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning", arXiv 2106.10199, section 3.

Only biases are trained, here as offsets that are added to them while the delta is attached. A bias is a parameter whose
own name is `bias`, those of LayerNorms among them; the paper's small variant trains those of the queries and of the
feed-forward networks' first layers. A bias that several parts share gets one offset. Offsets begin at zero, so that the
model is exactly itself at step 0; they are float32 whatever the model's dtype, in which the sum is rounded.

Llama, T5 and others have no biases and are refused, unless `extra`, our choice, gives each dense layer without a bias
one of zeros. Where a model has few, as Qwen, those are trained. The paper's small variant is refused where a model
keeps queries, keys and values in one layer, as GPT-2. Left out are the biases of a pooler, which no host here uses.
With gradient checkpointing the backward pass belongs within `attach`: layers that run again behind it run without the
offsets, and since a sum keeps nothing for its gradient, torch cannot notice, as it does with other deltas.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, hooked, key, parameter_of, replaced, target_modules, unkey
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompts.saved import fill_exactly

KIND = "bitfit"

QUERIES = ("query", "q_proj", "q", "q_lin")
INTERMEDIATES = ("intermediate.dense", "c_fc", "fc1", "wi", "wi_0", "gate_proj", "dense_h_to_4h", "fc_in", "lin1")


class BitFit(nn.Module):
    """Offsets of a model's biases. Make one with `BitFit.create` or `BitFit.load`.

    shapes: parameter name -> length, of the biases that the model has
    extra: the same, of biases that it does not have
    settings: what `create` chose them by
    """

    def __init__(self, shapes: dict[str, int], extra: dict[str, int], settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings
        self._extra = frozenset(extra)
        self.offsets = nn.ParameterDict({key(name): torch.zeros(n) for name, n in {**shapes, **extra}.items()})

    @classmethod
    def create(
        cls,
        host: Host,
        *,
        which: str | Sequence[str] = "all",
        norms: bool = True,
        extra: bool = False,
        seed: int = 0,
    ) -> "BitFit":
        """New offsets, all zero whatever the seed.

        which: "all", "query_and_intermediate" (the paper's small variant), or endings of layer names (["q_proj"])
        norms: with "all", those of the norms too, as in the paper
        extra: dense layers that have no bias get one

        Raises: ConfigError when the model has no such bias.
        """
        chosen = _chooser(which)
        shapes = {
            name: parameter.numel()
            for name, parameter in host.model.named_parameters()
            if name.endswith(".bias") and not name.startswith("pooler.") and chosen(name.removesuffix(".bias"))
        }
        if not norms:
            shapes = {name: n for name, n in shapes.items() if not _is_norm(host.model, name)}
        added = _missing(host.model, chosen) if extra else {}
        names = [name.removesuffix(".bias") for name in (*shapes, *added)]
        wanted = (QUERIES, INTERMEDIATES) if which == "query_and_intermediate" else ()
        if not names or not all(any(_ends(name, endings) for name in names) for endings in wanted):
            raise ConfigError(
                f"{type(host.model).__name__} has no biases, or not all, that are meant by which={which!r}, "
                f"norms={norms}; set extra=True to give dense layers without a bias one of zeros, choose by "
                "which=[endings of layer names], or use another delta"
            )
        settings = {"which": which if isinstance(which, str) else list(which), "norms": norms, "extra": extra}
        return cls(shapes, added, settings).to(next(host.model.parameters()).device)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model's biases are offset."""
        sums, hooks = {}, []
        for name, offset in self.offsets.items():
            bias = unkey(name)
            if bias in self._extra:
                hooks.append((_layer(model, bias), _adds(offset)))
            else:
                sums[bias] = parameter_of(model, bias) + offset
        with replaced(model, sums), hooked(hooks):
            yield

    def extra_repr(self) -> str:
        """What `print(bitfit)` shows."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())

    def save(self, folder: Path | str, lm: Host) -> None:
        """Writes the offsets with the fingerprint of the model they belong to.

        Raises: CheckpointError when they hold non-finite or huge numbers, or the folder cannot be written.
        """
        save_module(folder, self.state_dict(), self.settings, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Host, *, allow_other_lm: bool = False) -> "BitFit":
        """Reads what `save` wrote.

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another model.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        try:
            made = cls.create(host, **config)
        except (TypeError, ConfigError) as error:
            raise CheckpointError(f"{folder} holds offsets that do not fit this model: {error}") from error
        fill_exactly(made, tensors, folder)
        return made


def parameter_count(biases: Sequence[int]) -> int:
    """What is trained: one number for each number of the biases, given their lengths."""
    return sum(biases)


def _chooser(which: str | Sequence[str]) -> Callable[[str], bool]:
    """Whether a layer of that name is meant."""
    if which == "all":
        return lambda layer: True
    if isinstance(which, str):
        if which != "query_and_intermediate":
            raise ConfigError(f"which is {which!r}; expected all, query_and_intermediate, or a list of layer names")
        endings: Sequence[str] = QUERIES + INTERMEDIATES
    else:
        endings = which
    return lambda layer: _ends(layer, endings)


def _ends(layer: str, endings: Sequence[str]) -> bool:
    return any(f".{layer}".endswith(f".{ending}") for ending in endings)


def _is_norm(model: nn.Module, name: str) -> bool:
    return "norm" in type(_layer(model, name)).__name__.lower()


def _missing(model: nn.Module, chosen: Callable[[str], bool]) -> dict[str, int]:
    """Biases that the dense layers lack: name -> length."""
    found = {}
    for name in target_modules(model):
        layer = model.get_submodule(name)
        if chosen(name) and isinstance(layer, nn.Linear) and layer._parameters["bias"] is None:
            found[f"{name}.bias"] = layer.out_features
    return found


def _layer(model: nn.Module, bias: str) -> nn.Module:
    try:
        return model.get_submodule(bias.rpartition(".")[0])
    except AttributeError as error:
        raise ConfigError(f"{type(model).__name__} has no {bias!r}; the offsets were made for another model") from error


def _adds(offset: Tensor) -> Callable[..., Tensor]:
    def add(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return (output + offset).to(output.dtype)

    return add
