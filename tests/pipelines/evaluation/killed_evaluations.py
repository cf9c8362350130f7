"""Evaluates whole, killed at random moments, and killed around every write. Run by test_run.py.

Children are forked from a parent that has imported everything, so that many kills take seconds. A child sets the clock
of its random kill itself, so that a busy machine cannot let it end first. SIGALRM, which nobody handles, ends a process
as SIGKILL does.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pipelines.evaluation.run import evaluate
from tests.pipelines.evaluation.toy_pipeline import ToyPipeline, questions


def child(out: Path, delay: float, *, kill_at: int | None = None, kill_after: float = 0) -> int:
    """Evaluate in a forked child; its process id.

    kill_at: n, it kills itself at the nth fsync, before or after
    kill_after: seconds to its end by a signal, 0 for never
    """
    process = os.fork()
    if process:
        return process
    signal.setitimer(signal.ITIMER_REAL, kill_after)
    if kill_at is not None:
        count, real = 0, os.fsync

        def fsync(handle: int) -> None:
            nonlocal count
            count += 1
            if count == kill_at // 2 and kill_at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            real(handle)
            if count == kill_at // 2:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = fsync  # type: ignore[assignment]
    evaluate(ToyPipeline(delay=delay), questions(), out, chunk=8, progress=False)
    os._exit(0)


def killed(process: int) -> bool:
    """Wait for the child; whether a signal ended it."""
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"the child ended with {status}")
    return False


def main(folder: Path) -> None:
    evaluate(ToyPipeline(), questions(), folder / "whole", chunk=8, progress=False)
    rng = random.Random(3)
    random_kills = 0
    while killed(child(folder / "random", 0.002, kill_after=rng.uniform(0.001, 0.05) if random_kills < 25 else 0)):
        random_kills += 1
    kills_at_writes = 0
    for kill_at in 4 * list(range(2, 14)):
        kills_at_writes += killed(child(folder / "writes", 0.0, kill_at=kill_at))
    if killed(child(folder / "writes", 0.0)):
        raise SystemExit("the last child was killed by someone else")
    print(json.dumps({"random_kills": random_kills, "kills_at_writes": kills_at_writes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
