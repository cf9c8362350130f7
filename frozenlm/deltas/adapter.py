"""Adapters: small bottlenecks beside the sublayers of a frozen model.

An adapter adds scale * up(f(down(x))) to what a sublayer gives back, before the residual is added. Three forms:

    houlsby     Houlsby et al. 2019, arXiv 1902.00751, section 2.1: after the attention's output projection and after
                the feed-forward network, two a block; x is the sublayer's output
    pfeiffer    Pfeiffer et al. 2020, arXiv 2005.00247 and 2005.00052: after the feed-forward network only
    parallel    He et al. 2021, arXiv 2110.04366: beside the feed-forward network; x is what the network reads, scale 4

Our choices: `up` begins at zero, so that the model is exactly itself at step 0, where the papers begin near zero; a
pfeiffer adapter stands where the second houlsby one does; a parallel one reads what the network's first dense layer
reads, behind a norm if there is one; a decoder's cross-attention gets a houlsby adapter only with `cross=True`, since
the paper, which has encoders only, counts two a block.
Where the sublayers of a block end is read off the names of its dense layers, those of gpt2, opt, llama, t5, bart, bert
and their kin; a model of other names is refused. Adapters compute in float32 whatever the model's dtype.
Shapes: d the model's width, m the bottleneck's.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from frozenlm.checkpoint import load_module, save_module
from frozenlm.deltas.attach import Host, blocks, hooked, key, target_modules, unkey
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompts.saved import fill_exactly

KIND = "adapter"

Form = Literal["houlsby", "pfeiffer", "parallel"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
ATTENTION_ENDS = ("c_proj", "out_proj", "o_proj", "o", "dense", "out_lin")
FEED_FORWARD_ENDS = ("c_proj", "fc2", "down_proj", "wo", "output.dense", "dense_4h_to_h", "fc_out", "lin2")
FEED_FORWARD_BEGINS = ("c_fc", "fc1", "gate_proj", "wi", "wi_0", "intermediate.dense", "dense_h_to_4h", "fc_in", "lin1")
CROSS = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn")


@dataclass(frozen=True)
class Place:
    """Where an adapter stands: it adds to what the layer `after` gives; it reads the same, or what `reads` reads."""

    after: str
    reads: str | None = None


class Bottleneck(nn.Module):
    """[..., d] -> [..., d] through m numbers; zero at first. 2dm + d + m parameters.

    generator: of the down-projection's weights, uniform within 1 / sqrt(d)
    """

    def __init__(self, hidden: int, width: int, activation: str, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden, width), nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]
        nn.init.uniform_(self.down.weight, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden), generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """In the dtype of its parameters, given back in that of x."""
        return self.up(self.activation(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)


class Adapter(nn.Module):
    """Bottlenecks at the sublayers of one model. Make one with `Adapter.create` or `Adapter.load`.

    hidden: d
    places: where they stand, one bottleneck each
    form, width, activation, scale, cross: see `create`
    """

    def __init__(
        self,
        hidden: int,
        places: list[Place],
        *,
        form: Form,
        width: int,
        activation: str,
        scale: float,
        cross: bool,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.form, self.width, self.activation, self.scale, self.cross = form, width, activation, scale, cross
        self._reads = {place.after: place.reads for place in places}
        self.adapters = nn.ModuleDict(
            {key(place.after): Bottleneck(hidden, width, activation, generator) for place in places}
        )

    @classmethod
    def create(
        cls,
        host: Host,
        *,
        form: Form = "pfeiffer",
        width: int = 16,
        activation: str = "relu",
        scale: float | None = None,
        cross: bool = False,
        seed: int = 0,
    ) -> "Adapter":
        """New adapters for a model; the same seed gives the same ones.

        form: "houlsby", "pfeiffer" or "parallel"
        width: m
        activation: the non-linearity, "relu", "gelu", "silu" or "tanh"
        scale: what an adapter's output is multiplied with; None is `usual_scale`
        cross: houlsby only: a third adapter after a decoder's cross-attention

        Raises: ConfigError for an unknown setting, or a model whose sublayers cannot be told from their names.
        """
        if form not in get_args(Form) or activation not in ACTIVATIONS:
            raise ConfigError(
                f"form is {form!r} and activation {activation!r}; expected one of {get_args(Form)} and one of "
                f"{tuple(ACTIVATIONS)}"
            )
        if width < 1 or (cross and form != "houlsby"):
            raise ConfigError(
                f"width is {width} and cross {cross} for form {form!r}; expected a width of at least 1, and cross for "
                "houlsby adapters only"
            )
        scale = usual_scale(form) if scale is None else float(scale)
        places = find_places(host.model, form, cross=cross)
        layer = host.model.get_submodule(places[0].after)
        hidden = getattr(layer, "out_features", None) or layer.nf
        made = cls(hidden, places, form=form, width=width, activation=activation, scale=scale, cross=cross, seed=seed)
        return made.to(layer.weight.device)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model's sublayers are adapted."""
        reading: dict[str, Tensor] = {}
        before, after = [], []
        for name, adapter in self.adapters.items():
            place, reads = unkey(name), self._reads[unkey(name)]
            after.append((_part(model, place), self._adds(place, adapter, reading)))
            if reads is not None:
                before.append((_part(model, reads), _keeps(place, reading)))
        with hooked(before, before=True), hooked(after):
            yield

    def extra_repr(self) -> str:
        """What `print(adapter)` shows."""
        return f"form={self.form!r}, width={self.width}, activation={self.activation!r}, scale={self.scale}"

    def save(self, folder: Path | str, lm: Host) -> None:
        """Writes the adapters with the fingerprint of the model they belong to.

        Raises: CheckpointError when they hold non-finite or huge numbers, or the folder cannot be written.
        """
        names = ("form", "width", "activation", "scale", "cross")
        config = {name: getattr(self, name) for name in names}
        save_module(folder, self.state_dict(), config, lm_fingerprint=lm.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: Host, *, allow_other_lm: bool = False) -> "Adapter":
        """Reads what `save` wrote.

        Raises: CheckpointError when it is missing, damaged, unsafe, or was trained for another model.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        try:
            made = cls.create(host, **config)
        except (TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{folder} holds adapters that do not fit this model: {error}") from error
        fill_exactly(made, tensors, folder)
        return made

    def _adds(self, place: str, adapter: nn.Module, reading: dict[str, Tensor]) -> Callable[..., Tensor]:
        def add(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            return output + self.scale * adapter(reading.pop(place, output))

        return add


def usual_scale(form: Form) -> float:
    """4 for parallel adapters, as in their paper, and 1 for the others."""
    return 4.0 if form == "parallel" else 1.0


def parameter_count(places: int, hidden: int, width: int) -> int:
    """What is trained at that many places: 2dm + d + m each."""
    return places * (2 * hidden * width + hidden + width)


def find_places(model: nn.Module, form: Form, *, cross: bool = False) -> list[Place]:
    """Where adapters of a form stand in a model, block by block.

    Raises: ConfigError where a block's dense layers have other names than those we know.
    """
    dense, found = target_modules(model), []
    for block, _ in blocks(model):
        inside = [name for name in dense if name.startswith(f"{block}.")]
        attention = set(target_modules(model, "attention")) & set(inside)
        rest = [name for name in inside if name not in attention]
        if form == "houlsby":
            crossing = {name for name in attention if any(part in CROSS for part in name.split("."))}
            found.append(Place(_only(model, block, sorted(attention - crossing), ATTENTION_ENDS)))
            if cross and crossing:
                found.append(Place(_only(model, block, sorted(crossing), ATTENTION_ENDS)))
        end = _only(model, block, rest, FEED_FORWARD_ENDS)
        found.append(Place(end, _only(model, block, rest, FEED_FORWARD_BEGINS) if form == "parallel" else None))
    return found


def _only(model: nn.Module, block: str, names: list[str], endings: tuple[str, ...]) -> str:
    chosen = [name for name in names if any(name.endswith(f".{ending}") for ending in endings)]
    if len(chosen) != 1:
        raise ConfigError(
            f"where adapters would stand in {block} of {type(model).__name__} cannot be told: of its layers "
            f"{[name.removeprefix(block + '.') for name in names]} one should be called {' or '.join(endings)}; use "
            "LoRA, which fits any dense layer"
        )
    return chosen[0]


def _part(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(
            f"{type(model).__name__} has no part {name!r}; the adapters were made for another model"
        ) from error


def _keeps(place: str, reading: dict[str, Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        reading[place] = args[0]

    return keep
