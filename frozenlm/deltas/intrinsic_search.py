"""How many dimensions a task needs: d90, the smallest d that reaches 90% of full fine-tuning's score.

Li et al. 2018, arXiv 1804.08838, section 2; Aghajanyan et al. 2020, arXiv 2012.13255, section 4. Our choice: a search
by halves over a grid of dimensions, which takes scores for rising with d; each is measured once and kept in a JSON
file, so a search that was stopped goes on where it was. A task that the LM solves without training has d90 at the
smallest d of the grid: read it beside the LM's own score.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from frozenlm.checkpoint import atomic_write_json
from frozenlm.errors import CheckpointError, ConfigError

SHARE = 0.9
ROUNDING = 1e-9  # 0.9 x 0.8 is a little above 0.72 in floating point


@dataclass(frozen=True)
class D90:
    """What a search found.

    Args:
        dimension: the smallest of the grid that reaches the target; None where the largest does not.
        target: the score that was to be reached.
        scores: of the dimensions that were measured, rising; where they do not rise with d, the answer is doubtful.
    """

    dimension: int | None
    target: float
    scores: dict[int, float]

    @property
    def is_monotone(self) -> bool:
        """Whether the measured dimensions agree with the search: all below d90 miss the target, all above reach it."""
        reached = [_reaches(score, self.target) for score in self.scores.values()]
        return reached == sorted(reached)


def powers(smallest: int, largest: int, *, per_octave: int = 1) -> list[int]:
    """A grid of dimensions: powers of two from smallest up to largest, or several in each octave."""
    if not 1 <= smallest <= largest or per_octave < 1:
        raise ConfigError(f"a grid needs 1 <= smallest <= largest and per_octave >= 1, got {smallest}, {largest}")
    steps = math.floor(math.log2(largest / smallest) * per_octave + 1e-9)
    return sorted({round(smallest * 2 ** (k / per_octave)) for k in range(steps + 1)})


def d90_search(
    evaluate: Callable[[int], float],
    dims: Sequence[int],
    full_score: float,
    *,
    path: Path | str | None = None,
    share: float = SHARE,
) -> D90:
    """The smallest dimension of the grid whose score is at least share x full_score.

    Args:
        evaluate: trains at that dimension and gives the score, higher is better.
        dims: the grid, rising.
        full_score: of full fine-tuning on the same task and metric.
        path: a JSON file in which scores are kept from call to call.

    Raises:
        ConfigError: an empty or falling grid, a score that is not a finite number, or a full score not above 0.
        CheckpointError: the file is of another search or damaged.
    """
    grid = list(dims)
    if not grid or grid[0] < 1 or any(a >= b for a, b in itertools.pairwise(grid)):
        raise ConfigError(f"dims is {grid}; expected dimensions of at least 1 that rise")
    if not (math.isfinite(full_score) and full_score > 0 and 0 < share <= 1):
        raise ConfigError(f"{share} of a full score of {full_score} is no target; expected a share of a score above 0")
    target = share * full_score
    scores = {} if path is None else _known(Path(path), target)

    def reaches(dimension: int) -> bool:
        if dimension not in scores:
            score = float(evaluate(dimension))
            if not math.isfinite(score):
                raise ConfigError(f"the score at dimension {dimension} is {score}; expected a finite number")
            scores[dimension] = score
            if path is not None:
                atomic_write_json(path, {"target": target, "scores": {str(d): s for d, s in sorted(scores.items())}})
        return _reaches(scores[dimension], target)

    if not reaches(grid[-1]):
        return D90(None, target, dict(sorted(scores.items())))
    low, high = 0, len(grid) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(grid[middle]) else (middle + 1, high)
    return D90(grid[high], target, dict(sorted(scores.items())))


def _reaches(score: float, target: float) -> bool:
    return score >= target * (1 - ROUNDING)


def _known(path: Path, target: float) -> dict[int, float]:
    """Scores of an earlier call."""
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        scores = {int(dimension): float(score) for dimension, score in saved["scores"].items()}
        known = float(saved["target"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a file of this search ({error}); delete it or name another") from error
    if known != target:
        raise CheckpointError(f"{path} is of a search for {known}, this one is for {target}; name another file")
    return scores
