"""A toy world of facts and configs of both forms of recursion over it: closed book, or with passages."""

import json
from pathlib import Path
from typing import Any

from pipelines.loader import load_config
from tests.toys import toy_folder

FACTS = {"paris": "france", "london": "england", "berlin": "germany", "nile": "egypt", "amazon": "brazil"}
LOOP = {"steps": 4, "batch_size": 2, "eval_every": 2, "save_every": 2, "learning_rate": 0.05, "warmup_steps": 0}


def make_world(folder: Path, lm: str = "gpt2") -> Path:
    """Writes passages, questions, plain text and an LM."""
    corpus = [{"_id": f"p{i}", "title": a, "text": f"the {a} is in {b}"} for i, (a, b) in enumerate(FACTS.items())]
    rows = [{"_id": f"q{i}", "text": f"where is the {a}", "answers": [b]} for i, (a, b) in enumerate(FACTS.items())]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    (folder / "dev.jsonl").write_text(json.dumps(rows[4]))
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "text.txt").write_text("\n\n".join(f"the {a} is in {b} .\nwho is the king ?" for a, b in FACTS.items()))
    toy_folder(lm, folder).rename(folder / "lm")
    return folder


def settings(world: Path, kind: str, *, reads: bool = False, **changes: Any) -> dict[str, Any]:
    """A config as plain values; reads: over BM25's passages."""
    questions = {"questions": [{"path": str(world / "train.jsonl")}], "dev": [{"path": str(world / "dev.jsonl")}]}
    values: dict[str, Any] = {
        "kind": kind,
        "workspace": str(world / "work"),
        "lm": {"model": str(world / "lm")},
        "prompt": {"name": "p", "length": 3},
        "packing": {"answer_reserve": 6, "passage": "text : {text} "},
        "generation": {"max_new_tokens": 4},
        "training": {**questions, **LOOP},
        "evaluation": {"questions": {"path": str(world / "all.jsonl")}, "chunk": 3},
    }
    if kind == "textual_recursion":
        values["candidates"] = {"n": 4}
        values["second_pass"] = {"prompt": {"name": "s", "length": 2}, "reserve": 24}
        values["training"]["folds"] = 2
    else:
        values["connector"] = {"width": 8, "heads": 2, "feed_forward": 8}
        values["pretraining"] = {"files": [str(world / "text.txt")], "length": 8, "dev_blocks": 2, **LOOP}
    if reads:
        corpus = {"path": str(world / "corpus.jsonl")}
        values |= {"corpus": corpus, "retriever": {"kind": "bm25"}, "retrieve_k": 2, "build_index": "on_first_use"}
    return values | changes


def configured(world: Path, kind: str, **changes: Any) -> Any:
    """The validated config."""
    return load_config(settings(world, kind, **changes))


def written(world: Path, kind: str, **changes: Any) -> Path:
    """The config as a file."""
    file = world / f"{kind}.yaml"
    file.write_text(json.dumps(settings(world, kind, **changes)))  # JSON is YAML
    return file
