"""The soft slots of templates as a module: one matrix of vectors for each id, which is all that is trained.

Soft words in a template (OpenPrompt, arXiv 2111.01998) begin at the embeddings of real words; slots without words are
drawn from the vocabulary, like any prompt here. Several templates may share one module: an id is one set of vectors.
Shapes: n vectors of a slot, H width of the host's embeddings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from frozenlm.checkpoint import load_module, save_module
from frozenlm.errors import CheckpointError, ConfigError
from frozenlm.prompting.filled import PromptHost
from frozenlm.prompting.parts import SoftSlot, merged
from frozenlm.prompting.template import Template
from frozenlm.prompts.initializers import sampled_embeddings
from frozenlm.rows import Soft

KIND = "soft_slots"


class SoftSlots(nn.Module):
    """Vectors by slot id.

    vectors: id -> [n, H] where they begin; copied

    Attributes:
        ids: of the slots.
        template: the text of the template that they are trained in, kept with them; None where any may use them.
    """

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        super().__init__()
        if not vectors:
            raise ConfigError("no template has a soft slot, so there is nothing to train; add {soft:id} to one")
        self.ids = list(vectors)
        self.vectors = nn.ParameterDict(
            {_key(id_): nn.Parameter(one.detach().to(torch.float32, copy=True)) for id_, one in vectors.items()}
        )
        self.template: str | None = None

    @classmethod
    def create(cls, host: PromptHost, templates: Template | Sequence[Template], *, seed: int = 0) -> "SoftSlots":
        """For all soft slots of one or several templates; the same seed gives the same vectors.

        Raises: ConfigError where no template has one, two describe an id in two ways, or words have no token.
        """
        slots: dict[str, SoftSlot] = {}
        for template in [templates] if isinstance(templates, Template) else templates:
            for id_, slot in template.soft.items():
                slots[id_] = merged(slots.get(id_), slot, template.name)
        generator = torch.Generator().manual_seed(seed)
        return cls({id_: _begun(host, slots[id_], generator) for id_ in sorted(slots)})

    def of(self, id_: str) -> nn.Parameter:
        """[n, H] of a slot."""
        found: nn.Parameter = self.vectors[_key(id_)]
        return found

    def __contains__(self, id_: object) -> bool:
        return id_ in self.ids

    def segment(self, id_: str) -> Soft:
        """A slot as a piece of a row; it shares storage with the parameter, so that a batch copies it once."""
        return Soft(self.of(id_))

    @staticmethod
    def parameter_count(hidden_size: int, lengths: Sequence[int]) -> int:
        """H numbers a vector."""
        return hidden_size * sum(lengths)

    def save(self, folder: Path | str, host: PromptHost) -> None:
        """Writes the vectors with the fingerprint of the LM they belong to.

        Raises: CheckpointError when they hold non-finite or huge numbers, or the folder cannot be written.
        """
        config = {"ids": self.ids} | ({} if self.template is None else {"template": self.template})
        tensors = {f"vectors.{id_}": self.of(id_) for id_ in self.ids}
        save_module(folder, tensors, config, lm_fingerprint=host.fingerprint, kind=KIND)

    @classmethod
    def load(cls, folder: Path | str, host: PromptHost, *, allow_other_lm: bool = False) -> "SoftSlots":
        """Reads what `save` wrote.

        Raises: CheckpointError when it is missing, damaged, or was trained for another LM.
        """
        tensors, config = load_module(folder, kind=KIND, lm_fingerprint=host.fingerprint, allow_other_lm=allow_other_lm)
        ids = config.get("ids")
        if not isinstance(ids, list) or set(tensors) != {f"vectors.{id_}" for id_ in ids} or not ids:
            raise CheckpointError(f"{folder} holds {sorted(tensors)} and {config}; expected vectors for each id")
        for name, one in tensors.items():
            if one.ndim != 2 or one.shape[1] != host.hidden_size:
                raise CheckpointError(
                    f"{folder}: {name} is {list(one.shape)}; this LM needs [n, {host.hidden_size}]; "
                    "load the LM the slots were trained for"
                )
        made = cls({id_: tensors[f"vectors.{id_}"] for id_ in ids})
        made.template = config.get("template")
        return made


def slot_length(host: PromptHost, slot: SoftSlot) -> int:
    """Vectors of a slot: as many as it says, or a token of its words each, or one."""
    return slot.length or (1 if slot.init is None else len(host.encode(slot.init)))


def _key(id_: str) -> str:
    """The parameter's name. A `ParameterDict` makes each name an attribute, and refuses those that it has, as `type`,
    `keys` and `training`; an id has no colon, so no two share a name."""
    return f"soft:{id_}" if hasattr(nn.ParameterDict(), id_) else id_


def _begun(host: PromptHost, slot: SoftSlot, generator: torch.Generator) -> Tensor:
    length = slot_length(host, slot)
    if slot.init is None:
        return sampled_embeddings(host, length, generator)
    ids = host.encode(slot.init)
    if not ids:
        raise ConfigError(f"soft slot {slot.id!r}: {slot.init!r} has no token; begin it at a real word")
    repeated = (ids * (length // len(ids) + 1))[:length]
    with torch.no_grad():
        return host.embed(torch.tensor(repeated).to(host.device)).float().cpu()
