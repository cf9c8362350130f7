"""LoRA (Hu et al. 2021, arXiv 2106.09685), its relatives, and (IA)3, computed by the layers of the library `peft`.

    lora = PeftDelta.create(lm, method="lora", r=8, lora_alpha=16, seed=0)
    with attach(lm, lora): ...

peft's layers wrap the model's dense layers, so they stand in the model only inside `attached`, and on the way out the
dense layers come back as the very objects they were. They are made in a scaffold that holds nothing but the layers to
wrap, so that peft never sees the model; what is trained belongs to this module, float32 whatever the model's dtype, and
is lent to peft's layers. Methods, settings and what is refused: `peft_methods.py`; files of peft: `peft_files.py`.
Dropout is active while this module is in training mode. Weights are never merged: that would write to the model.

All methods leave the model exactly as it is at step 0 (with peft's initialisations other than `False`). Several at once
add up in the order given; DoRA measures the magnitudes of the model's own weights.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, Part, key, target_modules, unkey
from frozenlm.deltas.peft_methods import check_settings, choose_targets, peft_method
from frozenlm.errors import CheckpointError, ConfigError, FrozenViolationError
from frozenlm.prompts.saved import fill_exactly

KIND = "peft"

ADAPTER = "default"  # peft's name for the one adapter of a layer; its files leave it out


class PeftDelta(nn.Module):
    """The trained tensors of one peft method on some dense layers. Make one with `create`, `load` or `import_peft`.

    method: a key of `peft_methods.METHODS`
    targets: full names of the layers
    rescaled_inputs: those of them whose input, not output, (IA)3 rescales
    settings: peft's settings of the method
    model: to be wrapped later; asked for shapes and, for DoRA, for magnitudes
    """

    def __init__(
        self,
        method: str,
        targets: Sequence[str],
        rescaled_inputs: Sequence[str],
        settings: Mapping[str, Any],
        model: nn.Module,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_settings(method, settings)
        self.method, self.settings = method, dict(settings)
        self.targets, self.rescaled_inputs = tuple(targets), tuple(rescaled_inputs)
        self._seed = seed
        self._built: tuple[nn.Module, Any] | None = None
        self.tensors = nn.ParameterDict()
        for name, (owner, leaf) in _places(self.tuner(model)).items():
            self.tensors[key(name)] = nn.Parameter(owner._parameters[leaf].detach().to(torch.float32, copy=True))  # type: ignore[union-attr]

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
        return cls(method, chosen, [name for name in chosen if name in inner], settings, host.model, seed=seed)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model's layers are wrapped."""
        tuner = self.tuner(model)
        for name, (owner, leaf) in _places(tuner).items():
            owner._parameters[leaf] = self.tensors[key(name)]
        taken: list[tuple[nn.Module, str, nn.Module]] = []
        try:
            for name in self.targets:
                wrapper, (owner, leaf) = tuner.model.get_submodule(name), _slot(model, name)
                standing = owner.get_submodule(leaf)
                for part in _own_parts(wrapper):
                    part.training = self.training
                wrapper._modules["base_layer"] = standing
                taken.append((owner, leaf, standing))
                owner._modules[leaf] = wrapper
            yield
        finally:
            for owner, leaf, standing in reversed(taken):
                owner._modules[leaf] = standing

    def peft_config(self, model: nn.Module) -> Any:
        """peft's config of it."""
        method = peft_method(self.method)
        fields: dict[str, Any] = {**method.fixed, **self.settings, "target_modules": list(self.targets)}
        if self.method == "ia3":
            fields["feedforward_modules"] = list(self.rescaled_inputs)
        config = method.config(**fields)
        if hasattr(config, "fan_in_fan_out"):
            config.fan_in_fan_out = isinstance(_layer(model, self.targets[0]), Conv1D)
        return config

    def tuner(self, model: nn.Module) -> Any:
        """peft's model of a scaffold with the layers to wrap; kept for the model it was made for.

        Raises: ConfigError when peft cannot wrap a layer.
        """
        if self._built is None or self._built[0] is not model:
            scaffold = nn.Module()
            for name in self.targets:
                _put(scaffold, name, _layer(model, name))
            try:
                with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about what `peft_methods.py` has settled
                    torch.manual_seed(self._seed)
                    tuner = peft_method(self.method).tuner(scaffold, self.peft_config(model), ADAPTER)
            except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
                raise ConfigError(f"peft cannot make {self.method} of {type(model).__name__}: {error}") from error
            for name in self.targets:
                tuner.model.get_submodule(name).merge = _refuse_to_merge
            self._built = (model, tuner)
        return self._built[1]

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own wrappers: the model's layers lie in these."""
        return {**self.__dict__, "_built": None}

    def extra_repr(self) -> str:
        """What `print(delta)` shows."""
        return f"method={self.method!r}, layers={len(self.targets)}, settings={self.settings}"

    def save(self, folder: Path | str, lm: Host) -> None:
        """Writes the tensors with the fingerprint of the model they belong to.

        Raises: CheckpointError when they hold non-finite or huge numbers, or the folder cannot be written.
        """
        config = {
            "method": self.method,
            "targets": list(self.targets),
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
            made = cls(**config, model=host.model)
        except (TypeError, ConfigError) as error:
            raise CheckpointError(f"{folder} holds tensors that do not fit this model: {error}") from error
        fill_exactly(made, tensors, folder)
        return made

    def by_name(self) -> dict[str, Tensor]:
        """The tensors by the names that peft's files use, "base_model.model." left out."""
        return {unkey(name): tensor for name, tensor in self.tensors.items()}


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


def _slot(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


def _layer(model: nn.Module, name: str) -> nn.Module:
    """The model's own layer of that name, under any wrapper that stands there now."""
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(f"{type(model).__name__} has no layer {name!r}; it was made for another model") from error
    while isinstance(inner := layer._modules.get("base_layer"), nn.Module):
        layer = inner
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
