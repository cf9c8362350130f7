"""One trained vector over many weights: which tensors of a model it covers, in which order, and how it reaches them.

Methods that change any weight whatever its layer (DiffPruning, masking, random subsets, intrinsic dimension, copies)
train one flat float32 vector instead of a tensor a layer: its names do not depend on the architecture, and a step costs
a few passes over memory. Weight decay, which is for matrices, therefore never reaches these vectors.
Tied weights are covered once. Shapes: N weights covered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frozenlm.deltas.attach import Part, blocks, parameter_of, target_modules
from frozenlm.errors import CheckpointError, ConfigError

Targets = Literal["model", "blocks"] | Part | Sequence[str]
Grouping = Literal["tensor", "layer"]


@dataclass(frozen=True)
class Flat:
    """The weights that a flat vector [N] covers.

    Args:
        names: of the model's parameters, in the order of the vector.
        shapes: theirs.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, model: nn.Module, targets: Targets) -> "Flat":
        """The weights that are meant by `targets`.

        Args:
            targets: "model" for every parameter; "blocks" for those within the Transformer blocks, norms and biases
                too; or, as in `target_modules`, the weights of dense layers ("all", "attention", "feed_forward", or
                endings of names). A pooler, which no host runs, is left out.

        Raises:
            ConfigError: nothing is meant, or a weight is not a floating-point number (a quantised model).
        """
        if targets == "model":
            names = [name for name, _ in model.named_parameters() if not name.startswith("pooler.")]
        elif targets == "blocks":
            inside = tuple(f"{name}." for name, _ in blocks(model))
            names = [name for name, _ in model.named_parameters() if name.startswith(inside)]
        else:
            names = _first_names(model, [f"{name}.weight" for name in target_modules(model, targets)])
        return cls.named(model, names)

    @classmethod
    def named(cls, model: nn.Module, names: Sequence[str]) -> "Flat":
        """The parameters of these names.

        Raises:
            ConfigError: no such parameter, or not floating-point.
        """
        for name in names:
            if not parameter_of(model, name).is_floating_point():
                raise ConfigError(f"{name} holds {parameter_of(model, name).dtype}; deltas need floating-point weights")
        return cls(tuple(names), tuple(parameter_of(model, name).shape for name in names))

    @property
    def sizes(self) -> list[int]:
        """Weights of each tensor."""
        return [shape.numel() for shape in self.shapes]

    @property
    def total(self) -> int:
        """N."""
        return sum(self.sizes)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """[N] -> its parts in the tensors' shapes, by name."""
        parts = vector.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def added(self, model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
        """W0 + the vector's part, of each tensor; float32 at least."""
        return {name: base(model, name) + _near(part, model, name) for name, part in self.split(vector).items()}

    def added_at(self, model: nn.Module, index: Tensor, values: Tensor) -> dict[str, Tensor]:
        """W0 with values [n] added at index [n] (sorted, of N), of the tensors that any index falls into."""
        ends = torch.tensor(self.sizes).cumsum(0)
        counts = torch.searchsorted(index, ends.to(index)).diff(prepend=index.new_zeros(1)).tolist()
        starts = (ends - torch.tensor(self.sizes)).tolist()
        found = {}
        pieces = zip(self.names, self.shapes, starts, index.split(counts), values.split(counts), strict=True)
        for name, shape, start, where, what in pieces:
            if len(where):
                weight = base(model, name).flatten()
                found[name] = weight.index_add(0, (where - start).to(weight.device), what.to(weight)).view(shape)
        return found

    def groups(self, model: nn.Module, by: Grouping) -> list[int]:
        """The group of each tensor, counted from 0: one a tensor, or one a block and one for what is in no block."""
        if by == "tensor":
            return list(range(len(self.names)))
        if by != "layer":
            raise ConfigError(f"groups are by {by!r}; expected tensor or layer")
        inside = [name for name, _ in blocks(model)]
        owners = [next((block for block in inside if name.startswith(f"{block}.")), "") for name in self.names]
        numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
        return [numbers[owner] for owner in owners]


def base(model: nn.Module, name: str) -> Tensor:
    """The weight as it stands, in float32 at least, so that small changes are not lost before the cast."""
    weight = parameter_of(model, name)
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def count_of(share: float, total: int) -> int:
    """That share of the weights, at least one of them.

    Raises:
        ConfigError: not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; expected a number above 0 and at most 1, the part of the weights trained")
    return max(1, round(share * total))


def check_saved(tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], where: Path | str) -> None:
    """Refuse a file that does not hold exactly these tensors.

    Raises:
        CheckpointError: names what was found and expected.
    """
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: list(shape) for name, shape in shapes.items()}
    if found != expected:
        raise CheckpointError(
            f"{where} holds {found}; for this model and these settings it should hold {expected}; "
            "load the model it was trained for"
        )


def saved_targets(config: Mapping[str, Any], where: Path | str) -> Any:
    """The setting `targets` of a saved module.

    Raises:
        CheckpointError: it is missing or of another form.
    """
    targets = config.get("targets")
    names = isinstance(targets, list) and targets and all(isinstance(ending, str) for ending in targets)
    if not names and targets not in ("model", "blocks", "all", "attention", "feed_forward"):
        raise CheckpointError(f"{where} names no targets that we know: {targets!r}; train it again")
    return targets


def plain_targets(targets: Targets) -> str | list[str]:
    """Targets as JSON holds them."""
    return targets if isinstance(targets, str) else list(targets)


def _near(part: Tensor, model: nn.Module, name: str) -> Tensor:
    return part.to(parameter_of(model, name).device)


def _first_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Of names of one tied weight only the first."""
    first: dict[int, str] = {}
    for name in names:
        first.setdefault(id(parameter_of(model, name)), name)
    return list(first.values())
