"""Attach and detach: how a delta gets into the forward pass of a frozen model, and out again without a trace.

    with attach(lm, lora):
        loss, units = prompt_loss(lm, None, examples)      # lora's parameters get gradients, the LM's never do
    lm.forward(rows)                                       # the plain LM, bit for bit

A delta never writes to a weight. It has two ways in, both for the while of a `with`: `replaced` lets tensors such as
W0 + delta stand where parameters stand, and `hooked` adds forward hooks. The parameters come back as the very objects
they were, and on the way out, also by an exception, `attach` compares the model's structure with what it was.
The Delta Tuning survey (arXiv 2203.06904) calls all such methods deltas; this mechanism is our choice.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from frozenlm.errors import ConfigError, FrozenViolationError, ShapeError

Part = Literal["all", "attention", "feed_forward"]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_numbers = itertools.count()


@runtime_checkable
class Host(Protocol):
    """What a delta can be attached to: a FrozenLM or a FrozenEncoder."""

    model: Any
    fingerprint: str

    def changed(self, name: str) -> AbstractContextManager[None]:
        """For the while, what the host computes is not its own."""
        ...


@runtime_checkable
class Delta(Protocol):
    """A delta method; every one is an `nn.Module` whose parameters are exactly what is trained."""

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the model's forward pass goes through this module; differentiable in its parameters."""
        ...

    def save(self, folder: Path | str, lm: Any) -> None:
        """Write what is trained, with the fingerprint of what it belongs to."""
        ...


@contextmanager
def attach(host: Host, *deltas: Delta) -> Iterator[None]:
    """Run the host through the deltas for the while of the block; several add up in the order given.

    Enter it anew for each backward pass: what a delta computes from its parameters, it computes on entry. A memory read
    inside belongs to this block alone. The block is not for several threads at once.

    Raises:
        ConfigError: a delta that does not fit the host.
        FrozenViolationError: on exit, something was left behind.
    """
    before = _structure(host.model)
    try:
        with ExitStack() as stack:
            for delta in deltas:
                stack.enter_context(delta.attached(host.model))
            if deltas:
                stack.enter_context(host.changed(f"{host.fingerprint}+{next(_numbers)}"))
            yield
    finally:
        after = _structure(host.model)
        if left := [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]:
            raise FrozenViolationError(
                f"after a delta was detached the model is not what it was, in {', '.join(sorted(left)[:3])}; expected "
                "the same parts, parameters, hooks and attention; load the LM anew and mend the delta's `attached`"
            )


@contextmanager
def using(host: Host, module: Any) -> Iterator[Any]:
    """Whatever was trained, in its place: a delta is attached for the while and None is given, anything else, such as
    a prompt method or None, is given as it is."""
    if not isinstance(module, Delta):
        yield module
        return
    with attach(host, module):
        yield None


@contextmanager
def replaced(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let tensors stand where the model's parameters of these names stand, wherever those are tied to.

    Raises:
        ShapeError: a tensor of another shape than its parameter.
        ConfigError: no parameter of that name.
    """
    standing = _owners(model)
    taken: list[tuple[nn.Module, str, Any]] = []
    try:
        for name, tensor in tensors.items():
            parameter = parameter_of(model, name)
            if tensor.shape != parameter.shape:
                raise ShapeError(f"{name} is {list(parameter.shape)}, and was to be replaced by {list(tensor.shape)}")
            for owner, leaf in standing[id(parameter)]:
                taken.append((owner, leaf, owner._parameters[leaf]))
                owner._parameters[leaf] = tensor.to(parameter.dtype)  # type: ignore[assignment]
        yield
    finally:
        for owner, leaf, parameter in reversed(taken):
            owner._parameters[leaf] = parameter


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]], *, before: bool = False) -> Iterator[None]:
    """Forward hooks `hook(module, args, kwargs, output) -> output`, or with `before` pre-hooks
    `hook(module, args, kwargs) -> (args, kwargs)`."""
    with ExitStack() as stack:
        for module, hook in hooks:
            add = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(add(hook, with_kwargs=True).remove)
        yield


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's Transformer blocks by name, in order; of an encoder-decoder the encoder's first.

    Raises:
        ConfigError: the model has none that we can find.
    """
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    found = [(f"{name}.{index}", block) for name in outer for index, block in enumerate(_list(model, name))]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no list of Transformer blocks; use a model of transformers")
    return sorted(found, key=lambda one: "decoder" in one[0].split("."))


def target_modules(model: nn.Module, which: Part | Sequence[str] = "all") -> list[str]:
    """Names of the dense layers (`Linear`, `Conv1D`) within the blocks, never of embeddings or heads.

    Args:
        which: "attention" or "feed_forward" of them, or those whose names end with one of these (["q_proj", "v_proj"]).

    Raises:
        ConfigError: none is left; the message lists the endings there are.
    """
    dense = [
        f"{block}.{name}"
        for block, part in blocks(model)
        for name, layer in part.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
    ]
    if which in ("attention", "feed_forward"):
        chosen = [name for name in dense if _in_attention(name) == (which == "attention")]
    elif isinstance(which, str):
        chosen = dense if which == "all" else []
    else:
        chosen = [name for name in dense if any(f".{name}".endswith(f".{ending}") for ending in which)]
    if not chosen:
        endings = sorted({".".join(name.split(".")[-2:]) for name in dense})
        raise ConfigError(
            f"no dense layer of {type(model).__name__} is meant by {which!r}; expected all, attention, feed_forward or "
            f"endings of names, here {', '.join(endings)}"
        )
    return chosen


def parameter_of(model: nn.Module, name: str) -> nn.Parameter:
    """The model's parameter of that name, as it was loaded or as it stands now.

    Raises:
        ConfigError: there is none.
    """
    owner, _, leaf = name.rpartition(".")
    try:
        part = model.get_submodule(owner)
        while leaf not in part._parameters and "base_layer" in part._modules:  # under a wrapper of peft
            part = part.get_submodule("base_layer")
        found = part._parameters.get(leaf)
    except AttributeError:
        found = None
    if found is None:
        raise ConfigError(f"{type(model).__name__} has no parameter {name!r}; it was made for another architecture")
    return found


def key(name: str) -> str:
    """A name of the model as a key of an `nn.ParameterDict`, which takes no dots."""
    return name.replace(".", "/")


def unkey(key: str) -> str:
    """The inverse of `key`."""
    return key.replace("/", ".")


def _list(model: nn.Module, name: str) -> nn.ModuleList:
    part = model.get_submodule(name)
    return part if isinstance(part, nn.ModuleList) else nn.ModuleList()


def _in_attention(name: str) -> bool:
    """Whether a dense layer belongs to an attention: its parent or itself says so in the models of transformers."""
    inner = name.lower().split(".")
    return any("attn" in part or "attention" in part for part in inner)


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in model.modules():
        for leaf, parameter in part._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((part, leaf))
    return owners


def _structure(model: Any) -> dict[str, Any]:
    """Everything that a delta could leave behind, by name; the values of weights are `verify`'s business."""
    found: dict[str, Any] = {
        name or "the model": (
            id(part),
            type(part),
            part.training,
            "forward" in vars(part),
            {leaf: (id(p), None if p is None else p.requires_grad) for leaf, p in part._parameters.items()},
            [[id(hook) for hook in getattr(part, kind).values()] for kind in HOOKS],
        )
        for name, part in model.named_modules()
    }
    return found | {"its attention": getattr(model.config, "_attn_implementation", None)}
