"""What precision and attention a training step around a frozen LM runs fastest in, on this machine.

    python benchmarks/training_precision.py [--rows 16] [--tokens 70] [--threads 1]

One step: the forward pass of models/wiki-opt-22m over embeddings that need a gradient, as behind a soft prompt, and the
backward pass through the frozen weights; no head. Both attentions and both precisions take turns; medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frozenlm.lm import FrozenLM

MODEL = Path(__file__).resolve().parents[1] / "models" / "wiki-opt-22m"


def step(lm: FrozenLM, embeddings: torch.Tensor, mask: torch.Tensor, *, bf16: bool) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    began = time.perf_counter()
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=bf16):
        states = lm.model.get_decoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    between = time.perf_counter()
    states.float().pow(2).mean().backward()
    return between - began, time.perf_counter() - between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=70)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lms = {name: FrozenLM.load(MODEL, device="cpu", attn_implementation=name) for name in ("sdpa", "eager")}
    sides = list(itertools.product(lms, (False, True)))
    seconds: dict[tuple[str, bool], list[tuple[float, float]]] = {side: [] for side in sides}
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(given.rows, given.tokens, lms["sdpa"].hidden_size, generator=generator)
    mask = torch.ones(given.rows, given.tokens, dtype=torch.long)
    mask[::2, -given.tokens // 4 :] = 0  # every other row is padded, so that attention needs a mask
    for _ in range(given.repeats + 1):
        for name, bf16 in sides:
            seconds[name, bf16].append(step(lms[name], embeddings.clone().requires_grad_(), mask, bf16=bf16))
    for (name, bf16), taken in seconds.items():
        forward, backward = (statistics.median(column) for column in zip(*taken[1:], strict=True))
        precision = "bf16" if bf16 else "fp32"
        print(
            f"{name:5} {precision}: {forward + backward:.3f} s a step = {forward:.3f} forward + {backward:.3f} backward"
        )


if __name__ == "__main__":
    main()
