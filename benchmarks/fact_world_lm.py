"""A small decoder that learns a made-up world by heart: its tokenizer, its training from scratch, and what it knows.

Three things decide how fast facts are learned; each was found by trying (docs/log.md). The answer of a text counts ten
times what its other words do: most of these cannot be foreseen, and the noise of their gradients drowns the facts.
Texts stand alone in a row at first, and only one-hop facts are told; two-hop facts come once these are known, options
to choose from and rows of several texts at the end. Embeddings, which see a gradient only where their word occurs,
learn five times as fast as the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.fact_world_text import Shares, World, tell, wording_words

SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
PAD, UNK, BOS, EOS = range(4)
WINDOW = 256
DRAWN_AT_ONCE = 256


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained; the same at any depth.

    hidden, feed_forward, heads: sizes of a Llama-like block
    batch_tokens: of a step, padding included
    other_weight: what a word counts in the loss that is not the answer, which counts 1
    embedding_rate: the embeddings' learning rate over that of the rest
    chains_from, offers_from, joined_from: share of the training after which two-hop facts are told, options offered,
        and texts put several in a row of `row_tokens`
    """

    hidden: int = 128
    feed_forward: int = 256
    heads: int = 4
    batch_tokens: int = 1024
    other_weight: float = 0.1
    learning_rate: float = 3e-3
    embedding_rate: float = 5.0
    warmup: float = 0.05
    deviation: float = 0.06
    chains_from: float = 0.2
    offers_from: float = 0.8
    joined_from: float = 0.8
    row_tokens: int = 64
    shares: Shares = field(default=Shares())

    def shares_at(self, progress: float) -> Shares:
        """What is told after that share of the training."""
        return Shares(
            self.shares.chained if progress >= self.chains_from else 0.0,
            self.shares.asked,
            self.shares.offered if progress >= self.offers_from else 0.0,
        )


def pieces(world: World) -> list[str]:
    """The vocabulary: control tokens, the words of the wordings, the names."""
    return [*SPECIAL, *wording_words(), *(name for names in world.names.values() for name in names)]


def word_tokenizer(world: World) -> Any:
    """A tokenizer of whole words that opens a text with [BOS]; what it does not know is [UNK]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(pieces(world))}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", BOS)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def new_decoder(world: World, recipe: Recipe, *, depth: int, seed: int) -> Any:
    """A Llama-like decoder of so many layers, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(pieces(world)),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=depth,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=WINDOW,
            initializer_range=recipe.deviation,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def batches(world: World, recipe: Recipe, steps: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """`steps` batches of ids [B, T], padded with [PAD]."""
    number = {word: i for i, word in enumerate(pieces(world))}
    ready: list[list[list[int]]] = []
    shares, texts = None, iter(())
    for step in range(steps):
        if not ready:
            progress = step / steps
            if shares != recipe.shares_at(progress):
                shares = recipe.shares_at(progress)
                texts = tell(world, shares, rng)
            rows = [[BOS, *(number[word] for word in next(texts).split()), EOS] for _ in range(DRAWN_AT_ONCE)]
            if progress >= recipe.joined_from:
                rows = _joined(rows, recipe.row_tokens)
            ready = _of_like_length(rows, recipe.batch_tokens)
            ready = [ready[int(i)] for i in rng.permutation(len(ready))]
        batch = ready.pop()
        longest = max(map(len, batch))
        yield torch.tensor([row + [PAD] * (longest - len(row)) for row in batch])


def train(
    model: Any, world: World, recipe: Recipe, *, steps: int, seed: int, log: Callable[[str], None]
) -> dict[str, float]:
    """Train with AdamW. The same steps and seed give the same weights, on one machine and thread.

    Returns: steps, tokens (padding not counted), loss (nats an answer, over the last twentieth), time of all threads.
    """
    first_name = len(pieces(world)) - sum(map(len, world.names.values()))
    embeddings = model.get_input_embeddings().weight
    rest = [parameter for parameter in model.parameters() if parameter is not embeddings]
    groups = [{"params": [embeddings], "times": recipe.embedding_rate}, {"params": rest, "times": 1.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    model.train()
    tokens, losses, start = 0, [], time.process_time()
    for step, ids in enumerate(batches(world, recipe, steps, np.random.default_rng([seed, 1]))):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * group["times"] * _rate(step / steps, recipe.warmup)
        labels, is_answer = ids[:, 1:], answers(ids, first_name)[:, 1:]
        logits = model(input_ids=ids).logits[:, :-1]
        each = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        weights = torch.where(is_answer, 1.0, recipe.other_weight) * (labels != PAD)
        loss = (each * weights).sum() / weights.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += int((ids != PAD).sum())
        losses.append(float(each.detach()[is_answer].mean()))
        if (step + 1) % max(1, steps // 10) == 0:
            recent = losses[-max(1, steps // 10) :]
            rate = tokens / (time.process_time() - start)
            answer = sum(recent) / len(recent)
            log(f"step {step + 1}/{steps}  loss of answers {answer:.3f}  {rate:,.0f} tokens a CPU second")
    model.eval()
    seconds = time.process_time() - start
    last = losses[-max(1, len(losses) // 20) :]
    return {
        "steps": len(losses),
        "tokens": tokens,
        "cpu_seconds": round(seconds, 1),
        "tokens_per_cpu_second": round(tokens / seconds, 1),
        "loss": round(sum(last) / len(last), 4),
    }


def answers(ids: torch.Tensor, first_name: int) -> torch.Tensor:
    """Where the answers stand: the last name of each text. ids: [B, T]; returns: [B, T], bool."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    waiting = torch.zeros(len(ids), dtype=torch.bool)
    for place in reversed(range(ids.shape[1])):
        waiting |= ids[:, place] == EOS
        found[:, place] = waiting & (ids[:, place] >= first_name)
        waiting &= ~found[:, place]
    return found


def accuracy(lm: Any, asked: Sequence[tuple[str, str]]) -> float:
    """Share (0 to 1) of (question, answer) pairs that a FrozenLM answers, greedily and without any prompt."""
    from frozenlm.rows import Tokens

    texts = lm.encode_batch([f"question : {question} answer :" for question, _ in asked])
    rows = [[Tokens((*lm.bos_ids, *ids))] for ids in texts]
    said = lm.generate(rows, max_new_tokens=2)
    right = sum(one.text.strip() == answer for one, (_, answer) in zip(said, asked, strict=True))
    return right / max(1, len(asked))


def _rate(progress: float, warmup: float) -> float:
    """The learning rate's share of its peak: up in a line, down in a half cosine to a twentieth."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _joined(rows: list[list[int]], most: int) -> list[list[int]]:
    """Rows put one behind the other, up to `most` tokens."""
    found: list[list[int]] = [[]]
    for row in rows:
        if found[-1] and len(found[-1]) + len(row) > most:
            found.append([])
        found[-1] = [*found[-1], *row]
    return found


def _of_like_length(rows: list[list[int]], most: int) -> list[list[list[int]]]:
    """Batches of at most so many tokens, padding included."""
    found: list[list[list[int]]] = [[]]
    for row in sorted(rows, key=len):
        if found[-1] and (len(found[-1]) + 1) * len(row) > most:
            found.append([])
        found[-1].append(row)
    return found
