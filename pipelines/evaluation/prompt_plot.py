"""What a prompt method writes for inputs of different tasks: exported, measured, and drawn.

ID-PT's claim (arXiv 2204.10019, section 2) is that one generator serves many tasks because its prompts fit the input.
Whether prompts of one task lie together is measured as the share of variance between tasks and seen in a plane: the
prompts, flattened, on their first two principal components. Both are our choice of what to look at; one prompt for all
inputs has no variance, one prompt a task has all of it between tasks.

    prompts.safetensors   `prompts` [N, P, H] float32
    prompts.json          task and text of each, what wrote them, the share of variance
    prompts.png           the plane, coloured by task

Shapes: N inputs, P soft tokens, H hidden size of the LM, T tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from frozenlm.checkpoint import atomic_write_json
from frozenlm.prompts.interface import PromptInput, PromptModule
from frozenlm.tensor_file import read_tensors, write_tensors
from pipelines.errors import CheckpointError, ConfigError, MissingExtraError
from pipelines.evaluation.statistics import Floats
from pipelines.evaluation.task_answers import in_eval_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TENSORS, JSON, PICTURE = "prompts.safetensors", "prompts.json", "prompts.png"
NO_TASK = "no task"
_MARKERS = "osD^vPX*"


@dataclass(frozen=True, eq=False)
class WrittenPrompts:
    """The prompts of N inputs.

    Args:
        vectors: [N, P, H].
        tasks: of each input.
        texts: of each input.
    """

    vectors: Floats
    tasks: Sequence[str]
    texts: Sequence[str]

    @property
    def flat(self) -> Floats:
        """[N, P * H], the mean taken off."""
        flat = self.vectors.reshape(len(self.vectors), -1).astype(np.float64)
        centred: Floats = flat - flat.mean(axis=0)
        return centred

    @property
    def between_tasks(self) -> float | None:
        """Share of the variance that lies between the tasks' means, in [0, 1]; None where all prompts are the same."""
        flat = self.flat
        total = float((flat**2).sum())
        # What rounding alone leaves of equal prompts.
        if total <= 1e-10 * float((self.vectors.astype(np.float64) ** 2).sum()):
            return None
        of = np.asarray(self.tasks)
        groups = [flat[of == task] for task in dict.fromkeys(self.tasks)]
        return sum(len(group) * float((group.mean(axis=0) ** 2).sum()) for group in groups) / total

    @property
    def between_by_chance(self) -> float | None:
        """What `between_tasks` would be on average if the tasks' names were shuffled: (T - 1) / (N - 1)."""
        n = len(self.tasks)
        return (len(set(self.tasks)) - 1) / (n - 1) if n > 1 else None

    def figures(self) -> dict[str, Any]:
        """What `prompts.json` says beside the inputs."""
        n, length, hidden_size = self.vectors.shape
        return {
            "n": n,
            "length": length,
            "hidden_size": hidden_size,
            "between_tasks": self.between_tasks,
            "between_by_chance": self.between_by_chance,
        }

    def save(self, folder: Path | str, about: Mapping[str, Any] | None = None) -> None:
        """Write tensors and JSON.

        Args:
            about: what wrote them (fingerprints, a module's hash), to be kept beside them.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        folder = Path(folder)
        inputs = [{"task": task, "text": text} for task, text in zip(self.tasks, self.texts, strict=True)]
        write_tensors(folder / TENSORS, {"prompts": torch.from_numpy(self.vectors)}, {"n": len(inputs)})
        atomic_write_json(folder / JSON, {**(about or {}), **self.figures(), "inputs": inputs})

    @classmethod
    def load(cls, folder: Path | str) -> WrittenPrompts:
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or tensors and JSON of two exports.
        """
        folder = Path(folder)
        tensors, _ = read_tensors(folder / TENSORS)
        try:
            inputs = json.loads((folder / JSON).read_bytes())["inputs"]
            tasks, texts = [one["task"] for one in inputs], [one["text"] for one in inputs]
            vectors = tensors["prompts"].numpy()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} holds no exported prompts ({error!r}); export them again") from error
        if vectors.ndim != 3 or len(vectors) != len(tasks):
            raise CheckpointError(
                f"{folder / TENSORS} has prompts of shape {list(vectors.shape)}, {JSON} names {len(tasks)} inputs; "
                "expected [N, P, H] and N inputs: export them again"
            )
        return cls(vectors, tasks, texts)


@torch.no_grad()
def written_prompts(module: PromptModule, inputs: Sequence[PromptInput], *, batch_size: int = 64) -> WrittenPrompts:
    """The prompts that a method writes for inputs, in eval mode; an input without a task is put under `NO_TASK`.

    Raises:
        ConfigError: no inputs.
    """
    if not inputs:
        raise ConfigError("there is no input to write a prompt for; give at least one, better some from several tasks")
    segments = []
    with in_eval_mode(module):
        for start in range(0, len(inputs), batch_size):
            segments += [one.vectors.float().cpu() for one in module.segments(inputs[start : start + batch_size])]
    vectors = torch.stack(segments).numpy()
    return WrittenPrompts(vectors, [one.task or NO_TASK for one in inputs], [one.text for one in inputs])


def principal_plane(centred: Floats) -> tuple[Floats, tuple[float, float]]:
    """[N, D] with mean zero -> its coordinates [N, 2] on the first two principal components, and the share of variance
    that each of them holds. The sign of a component is that which makes its largest coordinate positive."""
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(centred), 2))
    shares = np.zeros(2)
    total = float((sizes**2).sum())
    for k in range(min(2, len(sizes))):
        axis = left[:, k] * sizes[k]
        points[:, k] = axis if axis[np.abs(axis).argmax()] >= 0 else -axis
        shares[k] = sizes[k] ** 2 / total if total > 0 else 0.0
    return points, (float(shares[0]), float(shares[1]))


def draw_prompts(prompts: WrittenPrompts, path: Path | str, *, title: str | None = None) -> None:
    """Write the plane as a PNG: a point an input, colour and shape by task, the tasks' means larger with a black edge.

    Raises:
        MissingExtraError: matplotlib is not installed.
        CheckpointError: the file cannot be written.
    """
    try:
        # The canvas by name, and no pyplot: no display, no global figure, no setting changed.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError('drawing prompts needs matplotlib: pip install "frozenlm[plots]"') from error
    names = list(dict.fromkeys(prompts.tasks))
    columns = 1 + (len(names) - 1) // 20
    figure = Figure(figsize=(6.6 + 1.9 * columns, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    _draw_plane(figure, prompts, names, columns, title)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}; choose a folder that can be written") from error


def _draw_plane(figure: Figure, prompts: WrittenPrompts, names: Sequence[str], columns: int, title: str | None) -> None:
    from matplotlib import colormaps

    axes = figure.add_subplot()
    points, shares = principal_plane(prompts.flat)
    of = np.asarray(prompts.tasks)
    listed: Any = colormaps["tab10" if len(names) <= 10 else "tab20"]
    size = 26 if len(of) <= 600 else 12
    for number, name in enumerate(names):
        own = points[of == name]
        colour, marker = listed.colors[number % len(listed.colors)], _MARKERS[number % len(_MARKERS)]
        look: dict[str, Any] = {"color": colour, "marker": marker}
        axes.scatter(own[:, 0], own[:, 1], s=size, alpha=0.55, linewidths=0, **look)
        look |= {"edgecolors": "black", "linewidths": 1.0, "zorder": 3}
        axes.scatter(own[:, 0].mean(), own[:, 1].mean(), s=85, label=f"{name} ({len(own)})", **look)
    axes.set_xlabel(f"first principal component, {100 * shares[0]:.0f}% of the variance")
    axes.set_ylabel(f"second principal component, {100 * shares[1]:.0f}%")
    axes.set_title(title or _title(prompts), fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.5)
    figure.legend(
        loc="outside right center",
        ncols=columns,
        title="task (inputs); large: its mean",
        fontsize=8,
        title_fontsize=8,
        markerscale=0.7,
    )


def _title(prompts: WrittenPrompts) -> str:
    between, chance = prompts.between_tasks, prompts.between_by_chance
    if between is None or chance is None:
        return f"Prompts of {len(prompts.tasks):,} inputs: all the same"
    return (
        f"Prompts of {len(prompts.tasks):,} inputs: {100 * between:.0f}% of their variance lies between tasks\n"
        f"({100 * chance:.0f}% if the tasks were shuffled)"
    )
