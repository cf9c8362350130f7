"""Prompt transfer: Vu et al. 2022, "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", arXiv
2110.07904, sections 2 and 3.

A prompt that was trained on one task starts another's. Which one: prompts are task embeddings, and the source whose
prompt is most similar to one trained briefly on the target task is retrieved. Similarity of X and Y is

    tokens     the mean of cos(x_i, y_j) over all pairs of rows
    average    cos of the mean rows

The start is the best source, or the average of several, weighted by similarity. `from_vectors` (`initializers.py`)
turns the vectors into an initialiser.

Our choices: only prompts that do not depend on the input can be sources; negative similarities get no weight.
Shapes: P soft tokens, H hidden size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from frozenlm.checkpoint import verify_module
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.prompts import low_rank, p_tuning, slots, soft_prompt, task_prompts
from frozenlm.prompts.interface import Constant, PromptModule
from frozenlm.prompts.task_prompts import TaskPrompts

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

By = Literal["tokens", "average"]
LOADERS: dict[str, Any] = {
    soft_prompt.KIND: soft_prompt.SoftPrompt,
    task_prompts.KIND: task_prompts.TaskPrompts,
    slots.KIND: slots.SlottedPrompt,
    p_tuning.KIND: p_tuning.PTuning,
    low_rank.KIND: low_rank.LowRankPrompt,
}


def similarity(one: Tensor, other: Tensor, *, by: By = "tokens") -> float:
    """How alike two prompts [P, H] are, -1 to 1; P may differ.

    Raises: ShapeError for prompts that are not matrices of one width; ConfigError for an unknown `by`.
    """
    if by not in get_args(By):
        raise ConfigError(f"similarity by {by!r}; expected one of {get_args(By)}")
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ShapeError(f"prompts [P, H] of one width can be compared, got {list(one.shape)} and {list(other.shape)}")
    rows = [prompt.detach().double().cpu() for prompt in (one, other)]
    if by == "average":
        return float(functional.cosine_similarity(rows[0].mean(dim=0), rows[1].mean(dim=0), dim=0))
    unit = [functional.normalize(prompt, dim=1) for prompt in rows]
    return float((unit[0] @ unit[1].T).mean())


def nearest(target: Tensor, sources: Mapping[str, Tensor], k: int = 1, *, by: By = "tokens") -> list[tuple[str, float]]:
    """The k sources most similar to a prompt, the most similar first, with their similarity; of equals the first.

    Raises: ConfigError without a source or for k below 1; as `similarity`.
    """
    if not sources or k < 1:
        raise ConfigError(f"nearest: {len(sources)} sources and k {k}; expected at least one of each")
    found = [(name, similarity(target, vectors, by=by)) for name, vectors in sources.items()]
    return sorted(found, key=lambda pair: -pair[1])[:k]


def average(prompts: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The weighted mean [P, H] of prompts [P, H]; weights are divided by their sum, and those below 0 count as 0.

    Raises: ShapeError for prompts of different shapes; ConfigError without one, or for weights that do not fit.
    """
    shapes = [list(prompt.shape) for prompt in prompts]
    if not prompts or any(shape != shapes[0] for shape in shapes):
        raise ShapeError(f"prompts of one shape [P, H] can be averaged, got {shapes}")
    given = torch.ones(len(prompts)) if weights is None else torch.tensor([max(0.0, w) for w in weights])
    if len(given) != len(prompts) or not 0 < float(given.sum()) < torch.inf:
        raise ConfigError(f"average: weights are {weights} for {len(prompts)} prompts; expected one each, some above 0")
    stacked = torch.stack([prompt.detach().float().cpu() for prompt in prompts])
    return torch.tensordot(given / given.sum(), stacked, dims=1)


@torch.no_grad()
def vectors_of(module: PromptModule, task: str | None = None) -> Tensor:
    """The vectors [P, H] of a prompt that does not depend on the input.

    task: whose prompt, of a prompt a task

    Raises: ConfigError for a method that writes its prompt from the input, or a task without a prompt.
    """
    if isinstance(module, TaskPrompts):
        return module.vectors(task).detach().clone()
    if not isinstance(module, Constant):
        raise ConfigError(
            f"a {type(module).__name__} writes another prompt for each input; start from a soft prompt, a prompt a "
            "task, or another one that stays the same"
        )
    return module.segment().vectors.detach().clone()


def saved_vectors(folder: Path | str, lm: "FrozenLM", task: str | None = None) -> Tensor:
    """The vectors [P, H] of a saved prompt of any kind in `LOADERS`.

    Raises: CheckpointError when it is missing, damaged, or was trained for another LM; as `vectors_of`.
    """
    kind = verify_module(folder).kind
    if kind not in LOADERS:
        raise ConfigError(f"{folder} holds a module of kind {kind!r}; a prompt can start from {', '.join(LOADERS)}")
    module: Any = LOADERS[kind].load(folder, lm)
    return vectors_of(module.eval(), task)
