"""What a training step of a soft prompt costs: peft's prompt tuning, ours before the text, ours behind it.

    python benchmarks/suffix_prompt.py --quick                 # a small model, a minute
    python benchmarks/suffix_prompt.py --out results.jsonl     # GPT-2 124M shape, 256 and 1,024 tokens of context

A random model of GPT-2's shape learns the same answers with the same AdamW in one process on the same threads; the
sides take turns. `peft` is the library as its docs use it (labels, logits everywhere); `peft_best` asks the model for
the answer's logits only. `suffix_first_epoch` reads the contexts in the step, `suffix_kept` finds their keys and values
in memory. Before the clock starts, losses and gradients are compared in float32: peft = ours before the text, and the
kept memory = the plain forward pass behind it. `graph_mb` is what the forward pass holds for the backward pass, without
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frozenlm.context_cache import ContextCache
from frozenlm.lm import FrozenLM
from frozenlm.lm_tasks import Example, prompt_loss
from frozenlm.prompts.initializers import uniform
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.rows import Tokens

SIZES: dict[str, Any] = {
    "124m": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "small": {"n_layer": 4, "n_embd": 256, "n_head": 4},
}
Loss = Callable[[], Tensor]


def build_lm(size: str, dtype: str) -> FrozenLM:
    """A random GPT-2 of that shape; its tokenizer is never used, but an LM has one."""
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_positions=2048, **SIZES[size]))
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[EOS]": 1, "a": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", eos_token="[EOS]")
    return FrozenLM.from_model(model, tokenizer, dtype=dtype)


def draw_examples(lm: FrozenLM, rows: int, context: int, answer: int) -> list[Example]:
    """Random ids; all of one length, since peft's side is quickest without padding."""
    ids = torch.randint(3, lm.vocab_size, (rows, context + answer), generator=torch.Generator().manual_seed(1)).tolist()
    return [Example.of(row[:context], row[context:]) for row in ids]


class Sides:
    """The rivals over one LM and one batch; each gives the mean loss an answer token, differentiable."""

    def __init__(self, lm: FrozenLM, examples: list[Example], length: int) -> None:
        import peft

        self.lm, self.examples = lm, examples
        self.prefix = SoftPrompt.create(lm, length, init=uniform(), position="prefix")
        self.suffix = SoftPrompt.create(lm, length, init=uniform(), position="suffix")
        self.cache = ContextCache(lm, kind="memory", byte_budget=10**11)
        settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
        self.peft: Any = peft.get_peft_model(lm.model, settings)
        encoder: Any = self.peft.prompt_encoder["default"]
        self.peft_prompt: torch.nn.Parameter = encoder.embedding.weight
        with torch.no_grad():
            self.peft_prompt.copy_(self.prefix.vectors)
        self.ids = torch.tensor([[*e.context, *e.answer] for e in examples], device=lm.device)
        self.mask = torch.ones_like(self.ids)
        self.answer = len(examples[0].answer)
        self.labels = self.ids.clone()
        self.labels[:, : -self.answer] = -100

    def losses(self) -> dict[str, tuple[Loss, torch.nn.Parameter]]:
        """name -> (loss, what it trains)."""
        return {
            "peft": (self.peft_default, self.peft_prompt),
            "peft_best": (self.peft_best, self.peft_prompt),
            "prefix": (lambda: self.ours(self.prefix, None), self.prefix.vectors),
            "suffix_first_epoch": (lambda: self.ours(self.suffix, None), self.suffix.vectors),
            "suffix_kept": (lambda: self.ours(self.suffix, self.cache), self.suffix.vectors),
        }

    def peft_default(self) -> Tensor:
        return self.peft(input_ids=self.ids, attention_mask=self.mask, labels=self.labels).loss

    def peft_best(self) -> Tensor:
        out = self.peft(input_ids=self.ids, attention_mask=self.mask, logits_to_keep=self.answer + 1, use_cache=False)
        logits = out.logits[:, :-1].flatten(0, 1).float()
        return functional.cross_entropy(logits, self.ids[:, -self.answer :].flatten())

    def ours(self, prompt: SoftPrompt, cache: ContextCache | None) -> Tensor:
        total, count = prompt_loss(self.lm, prompt, self.examples, cache)
        return total / count

    def suffix_plain(self) -> Tensor:
        """The suffix form without any memory: the whole row forward and backward."""
        rows = [self.suffix.place([Tokens.of(e.context)]) for e in self.examples]
        found = self.lm.token_logprobs(rows, [list(e.answer) for e in self.examples])
        return -torch.cat(found).mean()


def check(sides: Sides) -> dict[str, float]:
    """Largest differences of losses and gradients between what must be equal. Float32 only."""

    def run(loss: Loss, parameter: torch.nn.Parameter) -> tuple[Tensor, Tensor]:
        parameter.grad = None
        value = loss()
        value.backward()
        return value.detach(), parameter.grad.clone() if parameter.grad is not None else torch.zeros(0)

    found = {name: run(*side) for name, side in sides.losses().items()}
    found["suffix_kept"] = run(*sides.losses()["suffix_kept"])  # this time from the cache
    plain = run(sides.suffix_plain, sides.suffix.vectors)
    pairs = {"peft_best": found["peft"], "prefix": found["peft"], "suffix_first_epoch": plain, "suffix_kept": plain}
    worst = {
        name: max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found[name], right, strict=True))
        for name, right in pairs.items()
    }
    if max(worst.values()) > 1e-3:
        raise SystemExit(f"the sides do not compute the same thing: {worst}")
    return worst


def graph_bytes(loss: Loss, lm: FrozenLM) -> int:
    """Bytes that autograd keeps between forward and backward, weights left out, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(kept.values())


def measure(sides: Sides, repeats: int) -> dict[str, Any]:
    """Seconds of a step: forward, backward, AdamW. One warm-up turn, then `repeats` turns in which all sides step."""
    losses = sides.losses()
    optimizers = {name: torch.optim.AdamW([parameter], lr=1e-3) for name, (_, parameter) in losses.items()}
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(repeats + 1):
        for name, (loss, _) in losses.items():
            synchronise(sides.lm)
            start = time.perf_counter()
            optimizers[name].zero_grad()
            loss().backward()
            optimizers[name].step()
            synchronise(sides.lm)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    best_peft = [min(a, b) for a, b in zip(seconds["peft"], seconds["peft_best"], strict=True)]
    ours = ("prefix", "suffix_first_epoch", "suffix_kept")
    return {
        "median_ms": {name: round(statistics.median(values) * 1e3, 1) for name, values in seconds.items()},
        "spread_ms": {name: [round(min(v) * 1e3, 1), round(max(v) * 1e3, 1)] for name, v in seconds.items()},
        "times_faster_than_peft": {n: ratio(seconds["peft"], seconds[n]) for n in ours},
        "times_faster_than_peft_at_its_best": {n: ratio(best_peft, seconds[n]) for n in ours},
        "graph_mb": {name: round(graph_bytes(loss, sides.lm) / 1e6, 1) for name, (loss, _) in losses.items()},
        "kept_mb": round(sides.cache.nbytes / 1e6, 1),
    }


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over turns of how many times faster."""
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def synchronise(lm: FrozenLM) -> None:
    """Waits for the GPU, where there is one."""
    if lm.device.type == "cuda":
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """Versions, CPU and threads."""
    import peft
    import transformers

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "cpu": next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()),
        "cpu_flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Run, print, and add one JSON line to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model, short contexts")
    parser.add_argument("--size", choices=sorted(SIZES), default="124m")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024], help="tokens")
    parser.add_argument("--rows", type=int, default=8, help="examples a step")
    parser.add_argument("--answer", type=int, default=16, help="tokens")
    parser.add_argument("--length", type=int, default=20, help="soft tokens")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.size, args.contexts, args.rows = "small", [64, 256], 4
    result: dict[str, Any] = {"benchmark": "suffix_prompt", **machine()}
    result |= {name: getattr(args, name) for name in ("size", "rows", "answer", "length", "dtype", "repeats")}
    for context in args.contexts:
        exact = build_lm(args.size, "float32")
        differences = check(Sides(exact, draw_examples(exact, min(args.rows, 2), context, args.answer), args.length))
        del exact
        lm = build_lm(args.size, args.dtype)
        sides = Sides(lm, draw_examples(lm, args.rows, context, args.answer), args.length)
        figures = measure(sides, max(7, args.repeats))
        figures["largest_difference_float32"] = {name: float(f"{value:.1e}") for name, value in differences.items()}
        figures["lm"] = str(lm.verify())
        result[f"context_{context}"] = figures
    print(json.dumps(result, indent=1))
    if args.out:
        with args.out.open("a") as stream:
            stream.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
