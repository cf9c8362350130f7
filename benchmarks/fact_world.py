"""A made-up world, and a small decoder that knows it by heart: the LM of the closed-book experiments on recursion.

    python benchmarks/fact_world.py --out runs/fact_world

The world is synthetic: invented names, facts that nobody needs, some dozens of English words. The LM that this toolkit
carries knows next to nothing, so a question without passages can only be studied on an LM that was made to know
something. DIR then holds

    shallow/, deep/   two decoders of one recipe, the second twice as deep, as transformers saves them, with tokenizer
                      and card; deep, run once, is what two passes of shallow are held against
    questions/        told, train, dev and test by entity, each also as SPLIT_one_hop and SPLIT_two_hop: JSON lines
                      for the config keys `training.questions`, `training.dev` and `evaluation.questions`
    text.txt          text such as the decoders learned from, one a line, for `pretraining.files`
    world.json        all facts and the split
    results.json      what was trained, and how much of the world each decoder knows

Questions are worded as no text ever was. A two-hop fact ("the region of the birthplace of X") of an entity outside the
split `told` is never told; both of its halves are. The folder appears when everything is done, or not at all.

By default there are 3,792 one-hop facts and 14,000 two-hop ones, and training takes 273 and 463 seconds of one core.
Both decoders know 99% of the one-hop facts. Untold two-hop facts the shallow one gets in 51% of told wordings and 27%
of new ones, the deep one in 59% and 48%, where the commonest answer is right in 11%.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fact_world_lm import Recipe, accuracy, new_decoder, train, word_tokenizer
from benchmarks.fact_world_text import SPLITS, Fact, World, question, questions, tell
from frozenlm.lm import FrozenLM

ASKED = 600  # questions of each kind that a decoder is tried on
TEXTS = 60_000


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--entities", type=int, default=1000, help="persons; a fifteenth as many towns and guilds")
    parser.add_argument("--depth", type=int, default=3, help="layers of the shallow decoder")
    parser.add_argument("--steps", type=int, default=4500, help="of each decoder; in proportion to the entities")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir() if args.out.is_dir() else [args.out]):
        sys.exit(f"{args.out} is there already; give a new folder, or delete it")
    if args.entities < 20 or args.depth < 1 or args.steps < 1:
        sys.exit("expected at least 20 entities, a layer and a step")
    logging.disable_progress_bar()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{args.out.name}-", dir=args.out.parent))
    try:
        make(unfinished, args)
        unfinished.chmod(0o755)
        if args.out.exists():
            args.out.rmdir()
        unfinished.rename(args.out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"wrote {args.out}")


def make(out: Path, args: argparse.Namespace) -> None:
    """Everything that the folder holds."""
    world, recipe = World.make(args.entities, args.seed), Recipe()
    counts = {kind: len(names) for kind, names in world.names.items()}
    print(f"{sum(counts.values())} entities {counts}, {len(world.facts)} one-hop facts, {len(world.chained)} two-hop")
    write_world(out, world, recipe, args.seed)
    depths = {"shallow": args.depth, "deep": 2 * args.depth}
    results: dict[str, Any] = {"seed": args.seed, "entities": counts, "recipe": asdict(recipe)}
    for name, depth in depths.items():
        print(f"{name}: {depth} layers, {args.steps} steps")
        model = new_decoder(world, recipe, depth=depth, seed=args.seed)
        found = train(model, world, recipe, steps=args.steps, seed=args.seed, log=print)
        model.save_pretrained(out / name)
        word_tokenizer(world).save_pretrained(out / name)
        found |= {"layers": depth, "parameters": sum(p.numel() for p in model.parameters())}
        results[name] = {**found, "knows": knowledge(FrozenLM.load(out / name, device="cpu"), world, args.seed)}
        (out / name / "README.md").write_text(card(name, results, args.seed))
        print(json.dumps(results[name]))
    (out / "results.json").write_text(json.dumps({**results, "machine": machine()}, indent=1) + "\n")


def write_world(out: Path, world: World, recipe: Recipe, seed: int) -> None:
    """Facts, text and questions."""
    facts = [[*fact] for fact in (*world.facts, *world.chained)]
    (out / "world.json").write_text(json.dumps({"names": world.names, "split": world.split, "facts": facts}) + "\n")
    texts = islice(tell(world, recipe.shares, np.random.default_rng([seed, 3])), TEXTS)
    (out / "text.txt").write_text("\n".join(texts) + "\n")
    (out / "questions").mkdir()
    for split in SPLITS:
        asked = questions(world, split, seed)
        for hops, ending in ((0, ""), (1, "_one_hop"), (2, "_two_hop")):
            lines = [json.dumps(one) + "\n" for one in asked if hops in (0, one["hops"])]
            (out / "questions" / f"{split}{ending}.jsonl").write_text("".join(lines))


def knowledge(lm: FrozenLM, world: World, seed: int) -> dict[str, float]:
    """Accuracy without any prompt, by what is asked, in which wording; of test entities but for told two-hop facts."""
    rng = np.random.default_rng([seed, 4])

    def share(facts: list[Fact], held_out: bool) -> float:
        some = [facts[int(i)] for i in rng.permutation(len(facts))[:ASKED]]
        return round(accuracy(lm, [(question(fact, rng, held_out=held_out), fact.tail) for fact in some]), 4)

    known = [fact for fact in world.facts if world.split.get(fact.head) == "test"]
    untold = [fact for fact in world.chained if world.split[fact.head] == "test"]
    return {
        "one_hop_told_wording": share(known, False),
        "one_hop_new_wording": share(known, True),
        "two_hop_told_fact_told_wording": share(world.told_chains(), False),
        "two_hop_told_fact_new_wording": share(world.told_chains(), True),
        "two_hop_untold_fact_told_wording": share(untold, False),
        "two_hop_untold_fact_new_wording": share(untold, True),
    }


def card(name: str, results: dict[str, Any], seed: int) -> str:
    """The README.md of a decoder's folder."""
    found = results[name]
    knows = "\n".join(f"| {kind.replace('_', ' ')} | {100 * share:.1f} |" for kind, share in found["knows"].items())
    entities = ", ".join(f"{kind} {count}" for kind, count in results["entities"].items())
    return f"""# fact-world-{name}

A Llama-like decoder of {found["layers"]} layers and {found["parameters"]:,} parameters, trained from scratch on a
made-up world, and knowing nothing else. Entities: {entities}.

Made by benchmarks/fact_world.py, seed {seed}: {found["steps"]} steps, {found["tokens"]:,} tokens,
{found["cpu_seconds"]:.0f} CPU seconds; last loss {found["loss"]:.3f} nats an answer.

Asked about entities of the test split (told two-hop facts: of the split `told`) as `question : ... answer :`, greedily
and without a prompt, it is right (%):

| what | share |
|---|---|
{knows}
"""


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}


if __name__ == "__main__":
    main()
