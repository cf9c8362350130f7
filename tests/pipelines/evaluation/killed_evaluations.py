"""Evaluates whole, under kill -9 at random moments, and under kill -9 around every write. Run by test_run.py.

Children are forked from a parent that has imported everything, so that many kills take seconds.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pipelines.evaluation.run import evaluate
from tests.pipelines.evaluation.toy_pipeline import ToyPipeline, questions


def child(out: Path, delay: float, kill_at: int | None) -> int:
    """Evaluate in a forked child; its process id. `kill_at` n: it kills itself at the nth fsync, before or after."""
    process = os.fork()
    if process:
        return process
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
    while not (folder / "random" / "metrics.json").exists():
        process = child(folder / "random", 0.002, None)
        if random_kills < 25:
            time.sleep(rng.uniform(0.0, 0.05))
            os.kill(process, signal.SIGKILL)
        random_kills += killed(process)
    kills_at_writes = 0
    for kill_at in 4 * list(range(2, 14)):
        kills_at_writes += killed(child(folder / "writes", 0.0, kill_at))
    if killed(child(folder / "writes", 0.0, None)):
        raise SystemExit("the last child was killed by someone else")
    print(json.dumps({"random_kills": random_kills, "kills_at_writes": kills_at_writes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
