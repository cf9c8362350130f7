"""What an LM is, in one number, and whether it is still that.

Two uses of one pass over the tensors. `fingerprint` names the LM: SHA-256 over names, shapes and values of everything
its checkpoint holds. Values are hashed as the float32 numbers they stand for, so a bf16 checkpoint is the same LM
whether it is held in bf16 (GPU) or float32 (CPU); any other value, down to the last bit, is another LM. `verify`
compares every tensor in memory (non-persistent buffers and dtypes included) with what it was at load, bit by bit.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from frozenlm.errors import FrozenViolationError

CHUNK = 2**22  # values hashed at a time: bounds the float32 copy to 16 MB a thread


@dataclass(frozen=True)
class TensorDigest:
    """One tensor: dtype, shape, SHA-256 of its values, and whether a checkpoint would hold it."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    persistent: bool


@dataclass(frozen=True)
class Verification:
    """The comparison of a frozen model with what it was at load.

    Args:
        changed: tensors that differ, are new or are gone.
        total: tensors at load.
        names: of the changed ones.
        what: the model, in messages.
    """

    changed: int
    total: int
    names: list[str] = field(default_factory=list)
    what: str = "LM"

    def __str__(self) -> str:
        return f"{self.what} weights changed: {self.changed} of {self.total}"


def digest_tensors(model: nn.Module) -> dict[str, TensorDigest]:
    """Digest of every parameter and buffer, by name; tied weights once."""
    state = set(model.state_dict(keep_vars=True))
    named: dict[str, Tensor] = dict(model.named_parameters())
    named.update(model.named_buffers())
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        hashes = pool.map(_hash_values, named.values())  # hashlib lets other threads run meanwhile
        return {
            name: TensorDigest(str(tensor.dtype), tuple(tensor.shape), sha256, name in state)
            for (name, tensor), sha256 in zip(named.items(), hashes, strict=True)
        }


def fingerprint(digests: dict[str, TensorDigest]) -> str:
    """SHA-256 (hex) over the sorted names, shapes and values of what a checkpoint of the LM holds.

    Non-persistent buffers (rotary tables, masks) are left out: each machine computes them anew, and they may differ
    there in the last bit while the LM is the same. `compare` looks at them too.
    """
    total = hashlib.sha256()
    for name in sorted(digests):
        one = digests[name]
        if one.persistent:
            total.update(f"{name}|{list(one.shape)}|{one.sha256}\n".encode())
    return total.hexdigest()


def compare(before: dict[str, TensorDigest], after: dict[str, TensorDigest], what: str = "LM") -> Verification:
    """Which tensors differ between two digests of one model."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return Verification(changed=len(names), total=len(before), names=names, what=what)


def check_frozen(model: nn.Module, found: Verification) -> None:
    """Raise unless a model is what it was, and stays so.

    Args:
        found: its comparison with what it was at load.

    Raises:
        FrozenViolationError: a weight or buffer changed, a weight can be trained, or the model is in training mode.
    """
    if found.changed:
        names = ", ".join(found.names[:5])
        raise FrozenViolationError(f"{found}: {names}; something wrote to the frozen {found.what}, load it anew")
    loose = [name for name, p in model.named_parameters() if p.requires_grad]
    if loose or model.training:
        fault = f"the {found.what} is in training mode"
        if loose:
            fault = f"{len(loose)} weights of the {found.what} require gradient, e.g. {loose[0]}"
        raise FrozenViolationError(f"{fault}; it must stay frozen and in eval mode")


def _hash_values(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    flat = tensor.detach().reshape(-1)
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    digest.update(b"float32" if half else str(tensor.dtype).removeprefix("torch.").encode())
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK].to("cpu")
        part = part.float() if half else part.contiguous()
        digest.update(part.view(torch.uint8).numpy().data)
    return digest.hexdigest()
