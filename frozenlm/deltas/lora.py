"""LoRA (Hu et al. 2021, arXiv 2106.09685), its relatives, and (IA)3, computed by the layers of the library `peft`.

    lora = PeftDelta.create(lm, method="lora", r=8, lora_alpha=16, seed=0)
    with attach(lm, lora): ...

peft's layers wrap the model's dense layers, so they stand in the model only inside `attached`, and on the way out the
dense layers come back as the very objects they were. They are made around stand-ins that have the layers' shapes and no
weights, so that peft never sees the model; what is trained belongs to this module, float32 whatever the model's dtype,
and is lent to peft's layers. Methods, settings and what is refused: `peft_methods.py`; files of peft: `peft_files.py`.
Dropout is active while this module is in training mode. Weights are never merged: that would write to the model.

All methods leave the model exactly as it is at step 0, but with peft's initialisations `False` and, in the last bits,
"orthogonal". Several at once add up in the order given; DoRA measures the magnitudes of the model's own weights.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, Part, key, target_modules, unkey
from frozenlm.deltas.peft_methods import METHODS, NOT_FOR_CONV1D, check_settings, choose_targets, peft_method
from frozenlm.errors import CheckpointError, ConfigError, FrozenViolationError
from frozenlm.prompts.saved import fill_exactly

KIND = "peft"

ADAPTER = "default"  # peft's name for the one adapter of a layer; its files leave it out


class PeftDelta(nn.Module):
    """The trained tensors of one peft method on some dense layers. Make one with `create`, `load` or `import_peft`.

    method: a key of `peft_methods.METHODS`
    layers: full name -> (i, o), the numbers a layer takes and gives
    conv1d: they are `Conv1D` (GPT-2), which keeps weights as [i, o], not `Linear`
    rescaled_inputs: those whose input, not output, (IA)3 rescales
    settings: peft's settings of the method

    Raises: ConfigError for a setting that is refused, or layers that peft cannot wrap.
    """

    def __init__(
        self,
        method: str,
        layers: Mapping[str, Sequence[int]],
        *,
        conv1d: bool = False,
        rescaled_inputs: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.method, self.settings = method, dict(settings or {})
        check_settings(method, self.settings)
        if conv1d and method in NOT_FOR_CONV1D:
            others = ", ".join(one for one in METHODS if one not in NOT_FOR_CONV1D)
            raise ConfigError(f"{method} is not defined for Conv1D layers, which GPT-2 is made of; use {others}")
        self.layers = {name: (int(i), int(o)) for name, (i, o) in layers.items()}
        self.conv1d, self.rescaled_inputs, self._seed = conv1d, tuple(rescaled_inputs), seed
        self._built: tuple[Any, ...] = ()
        self.tensors = nn.ParameterDict()
        for name, (owner, leaf) in _places(self.tuner()).items():
            self.tensors[key(name)] = nn.Parameter(owner._parameters[leaf].detach().clone())  # type: ignore[union-attr]

    @classmethod
    def create(
        cls,
        host: Host,
        *,
        method: str = "lora",
        targets: Part | Sequence[str] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> "PeftDelta":
        """New tensors for a model; the same seed gives the same ones.

        method: "lora", "rslora", "dora", "loha", "lokr", "vera" or "ia3"
        targets: "all", "attention", "feed_forward", or endings of layer names; None for those of the method's paper
        settings: by peft's names: r, lora_alpha, lora_dropout, ...

        Raises: ConfigError for an unknown method or setting, one that would rewrite weights, or layers that peft's
            method cannot wrap.
        """
        peft_method(method)
        chosen = choose_targets(host.model, method, targets)
        inner = set(target_modules(host.model, "feed_forward")) if method == "ia3" else set()
        rescaled = [name for name in chosen if name in inner]
        made = cls.around(host.model, method, chosen, rescaled_inputs=rescaled, settings=settings, seed=seed)
        if method == "dora":
            made._measure(host.model)
        return made

    @classmethod
    def around(cls, model: nn.Module, method: str, targets: Sequence[str], **more: Any) -> "PeftDelta":
        """For the layers of these names, on their device; `more` as in the constructor."""
        layers = {name: _layer(model, name) for name in targets}
        conv1d = any(isinstance(layer, Conv1D) for layer in layers.values())
        made = cls(method, {name: _shape(layer) for name, layer in layers.items()}, conv1d=conv1d, **more)
        return made.to(next(model.parameters()).device)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model's layers are wrapped."""
        tuner = self.tuner()
        for name, (owner, leaf) in _places(tuner).items():
            owner._parameters[leaf] = self.tensors[key(name)]
        with ExitStack() as stack:
            for name, shape in self.layers.items():
                layer, wrapper = _layer(model, name), tuner.model.get_submodule(name)
                if _shape(layer) != shape or isinstance(layer, Conv1D) != self.conv1d:
                    raise ConfigError(
                        f"{name} of {type(model).__name__} is {type(layer).__name__} {_shape(layer)}, and the delta "
                        f"was made for {shape} of another model; attach it to that one"
                    )
                for part in _own_parts(wrapper):
                    part.training = self.training
                    for leaf, buffer in part._buffers.items():
                        part._buffers[leaf] = None if buffer is None else buffer.to(layer.weight.device)
                path, _, leaf = name.rpartition(".")
                owner = model.get_submodule(path)
                stack.enter_context(_standing(wrapper, "base_layer", owner.get_submodule(leaf)))
                stack.enter_context(_standing(owner, leaf, wrapper))
            yield

    def peft_config(self) -> Any:
        """peft's config of it."""
        method = peft_method(self.method)
        fields: dict[str, Any] = {**method.fixed, **self.settings, "target_modules": list(self.layers)}
        if self.method == "ia3":
            fields["feedforward_modules"] = list(self.rescaled_inputs)
        config = method.config(**fields)
        if hasattr(config, "fan_in_fan_out"):
            config.fan_in_fan_out = self.conv1d
        return config

    def tuner(self) -> Any:
        """peft's model of stand-ins for the layers.

        Raises: ConfigError when peft cannot wrap such layers.
        """
        if not self._built:
            scaffold = nn.Module()
            try:
                with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about what `peft_methods.py` has settled
                    for name, shape in self.layers.items():
                        _put(scaffold, name, _stand_in(*shape, conv1d=self.conv1d))
                    torch.manual_seed(self._seed)
                    tuner = peft_method(self.method).tuner(scaffold, self.peft_config(), ADAPTER)
            except (ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError, re.error) as error:
                raise ConfigError(f"peft cannot make {self.method} of these layers: {error}") from error
            for name in self.layers:
                tuner.model.get_submodule(name).merge = _refuse_to_merge
            self._built = (tuner,)  # in a tuple, so that peft's layers are no part of this module
        return self._built[0]

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own wrappers."""
        return {**self.__dict__, "_built": ()}

    def extra_repr(self) -> str:
        """What `print(delta)` shows."""
        return f"method={self.method!r}, layers={len(self.layers)}, settings={self.settings}"

    def save(self, folder: Path | str, lm: Host) -> None:
        """Writes the tensors with the fingerprint of the model they belong to.

        Raises: CheckpointError when they hold non-finite or huge numbers, or the folder cannot be written.
        """
        config = {
            "method": self.method,
            "layers": {name: list(shape) for name, shape in self.layers.items()},
            "conv1d": self.conv1d,
            "rescaled_inputs": list(self.rescaled_inputs),
            "settings": self.settings,
        }
        save_module(folder, self.state_dict(), config, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Host, *, allow_other_lm: bool = False) -> "PeftDelta":
        """Reads what `save` wrote.

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another model.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        try:
            made = cls(**config)
            with made.attached(host.model):
                pass
        except (TypeError, ValueError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"{folder} holds tensors that do not fit this model: {error}") from error
        fill_exactly(made, tensors, folder)
        return made.to(next(host.model.parameters()).device)

    def by_name(self) -> dict[str, Tensor]:
        """The tensors by the names that peft's files use, "base_model.model." left out."""
        return {unkey(name): tensor for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def _measure(self, model: nn.Module) -> None:
        """DoRA starts from the magnitudes of the model's weights, which the stand-ins do not have."""
        for name in self.layers:
            wrapper = self.tuner().model.get_submodule(name)
            vector = wrapper.lora_magnitude_vector[ADAPTER]
            matrices = {side: self.tensors[key(f"{name}.{side}.weight")] for side in ("lora_A", "lora_B")}
            layer = copy.deepcopy(_layer(model, name)).float()
            vector.update_layer(base_layer=layer, scaling=wrapper.scaling[ADAPTER], **matrices)
            self.tensors[key(f"{name}.lora_magnitude_vector")].copy_(vector.weight)


def _places(tuner: Any) -> dict[str, tuple[nn.Module, str]]:
    """Where peft's layers keep what is trained, by its name in peft's files."""
    found = {}
    for name, part in tuner.model.named_modules():
        for leaf, parameter in part._parameters.items():
            if parameter is not None and "base_layer" not in name.split("."):
                steps = [step for step in (*name.split("."), leaf) if step != ADAPTER]
                if steps[-2] == "lora_magnitude_vector":
                    steps.pop()  # peft keeps it as a module with a weight, and writes it as a tensor
                found[".".join(steps)] = (part, leaf)
    return found


def _own_parts(wrapper: nn.Module) -> list[nn.Module]:
    return [part for name, part in wrapper.named_modules() if "base_layer" not in name.split(".")]


@contextmanager
def _standing(owner: nn.Module, leaf: str, part: nn.Module) -> Iterator[None]:
    """For the while, a part stands where another stood."""
    if part is owner:
        raise ConfigError("a delta of peft's layers is attached twice at once; attach it once, or a copy of it")
    before, owner._modules[leaf] = owner._modules[leaf], part
    try:
        yield
    finally:
        owner._modules[leaf] = before


def _layer(model: nn.Module, name: str) -> Any:
    """The model's own layer of that name, under any wrapper that stands there now."""
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(f"{type(model).__name__} has no layer {name!r}; it was made for another model") from error
    while isinstance(inner := layer._modules.get("base_layer"), nn.Module):
        layer = inner
    if not isinstance(layer, nn.Linear | Conv1D):
        raise ConfigError(f"{name} is a {type(layer).__name__}; expected a dense layer; it was made for another model")
    return layer


def _shape(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """(i, o)"""
    first, second = layer.weight.shape
    return (first, second) if isinstance(layer, Conv1D) else (second, first)


def _stand_in(i: int, o: int, *, conv1d: bool) -> nn.Module:
    """A layer of that shape for peft to measure; its weights are one zero, seen i x o times."""
    layer = Conv1D(1, 1) if conv1d else nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(torch.zeros(()).expand((i, o) if conv1d else (o, i)), requires_grad=False)
    if conv1d:
        layer.nx, layer.nf = i, o
    else:
        layer.in_features, layer.out_features = i, o
    return layer


def _put(scaffold: nn.Module, name: str, layer: nn.Module) -> None:
    *path, leaf = name.split(".")
    for step in path:
        if step not in scaffold._modules:
            scaffold.add_module(step, nn.Module())
        scaffold = scaffold.get_submodule(step)
    scaffold.add_module(leaf, layer)


def _refuse_to_merge(*args: Any, **kwargs: Any) -> NoReturn:
    raise FrozenViolationError(
        "a delta is never merged, as that would write to the frozen model; export it with export_peft and merge it "
        "into a copy of the model with peft"
    )
