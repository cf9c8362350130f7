"""Trains a toy whole, and again under kills; prints the digests of what each run ended in. Run by test_training.py.

Children are forked from a parent that has imported everything but computed nothing, so that twenty kills take seconds.
A child sets the clock of its random kill itself, in its own processor time: on a busy machine the kills fall into the
same parts of a run as on a quiet one. SIGPROF, which nobody handles, ends a process as SIGKILL does.
"""

import hashlib
import json
import os
import random
import resource
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from frozenlm.optim import build_optimizer
from frozenlm.train_progress import make_accelerator
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit


def train(out: Path, optimizer: str, kill: str = "") -> None:
    """One training run in a child process. kill "before:3" or "after:3": around the third file replaced in this run."""
    torch.manual_seed(0)
    # Dropout: random numbers drawn in a step must be the same after a resume.
    module = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))
    data = torch.randn(23, 3)
    target = data.sum(dim=1, keepdim=True)

    def loss(rows: list[int]) -> tuple[torch.Tensor, int]:
        return ((module(data[rows]) - target[rows]) ** 2).sum(), len(rows)

    if kill:
        moment, number = kill.split(":")
        replace, calls = Path.replace, [0]

        def replace_or_die(self: Path, to: Path) -> Path:
            calls[0] += 1
            if calls[0] == int(number) and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            done = replace(self, to)
            if calls[0] == int(number) and moment == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        Path.replace = replace_or_die  # type: ignore[method-assign, assignment]
    settings = TrainSettings(
        steps=240,
        batch_size=4,
        gradient_accumulation=2,
        eval_every=7,
        save_every=4,
        warmup_steps=5,
        schedule="cosine",
        optimizer=optimizer,  # type: ignore[arg-type]
    )
    fit(
        module,
        examples=range(23),
        loss=loss,
        out=out,
        settings=settings,
        evaluate=lambda: -float(loss(list(range(23)))[0]),
        progress=False,
    )


def child(out: Path, optimizer: str, kill: str = "", kill_after: float = 0) -> bool:
    """Runs `train` in a fork; true when it ended by itself. `kill_after`: seconds of processor time, 0 for never."""
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_PROF, kill_after)
        try:
            train(out, optimizer, kill)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit(f"a run failed by itself in {out}")
    return os.WIFEXITED(status)


def outcome(out: Path) -> dict[str, str]:
    """Digests of the last weights and of the best ones, and the files that are there."""
    found = {}
    for path in sorted(out.iterdir()):
        tensors = {name: t for name, t in load_file(path).items() if name.startswith("module/")}
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].numpy().tobytes())
        found[path.name] = digest.hexdigest()
    return found


def main(folder: Path, optimizer: str) -> None:
    # Draws the imports of a run into the parent, once for all children.
    make_accelerator((), folder, {})
    build_optimizer(nn.Linear(1, 1), TrainSettings(steps=1, optimizer=optimizer))  # type: ignore[arg-type]
    child(folder / "whole", optimizer)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole_seconds = used.ru_utime + used.ru_stime
    dice = random.Random(5)
    kills = 0
    while kills < 12:
        if child(folder / "killed", optimizer, kill_after=dice.uniform(0.02, 0.15) * whole_seconds):
            break
        kills += 1
    child(folder / "killed", optimizer)
    saves = 0
    for number in range(40):
        moment = f"{('before', 'after')[number % 2]}:{1 + number % 3}"
        if child(folder / "killed_in_save", optimizer, kill=moment):
            break
        saves += 1
    child(folder / "killed_in_save", optimizer)
    names = ("whole", "killed", "killed_in_save")
    print(json.dumps({"kills": kills, "saves": saves} | {name: outcome(folder / name) for name in names}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
