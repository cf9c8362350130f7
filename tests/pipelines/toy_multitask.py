"""A toy world of two tasks, a toy LM and a toy encoder, and configs of kind multitask over them."""

import json
from pathlib import Path
from typing import Any

from pipelines.loader import load_config
from tests.toys import toy_encoder_model, toy_encoder_tokenizer, toy_folder, toy_model

COLOURS = [{"text": f"the {a} is {b}", "label": b} for a in ("city", "river", "cat", "dog") for b in ("red", "blue")]
PLACES = [{"text": f"the {a}", "label": b} for a, b in [("nile", "egypt"), ("amazon", "brazil"), ("river", "egypt")]]
ID_PT = {"kind": "input_dependent", "name": "p", "length": 3, "encoder_prompt": 2, "width": 8, "depth": 1, "heads": 2}
PROMPTS: dict[str, dict[str, Any]] = {
    "soft_prompt": {"kind": "soft_prompt", "name": "p", "length": 3},
    "task_prompts": {"kind": "task_prompts", "name": "p", "length": 3},
    "idpg": {"kind": "idpg", "name": "p", "length": 3, "bottleneck": 4},
    "input_dependent": ID_PT,
    "attempt": {"kind": "attempt", "name": "p", "length": 3, "sources": ["a", "b"], "width": 4},
}


def make_world(folder: Path, lm: str = "gpt2", encoder: str = "bert") -> Path:
    """Writes records, LM and encoder; "t5" is a whole T5, of which the encoder half is to be taken."""
    for name, rows in (("colours", COLOURS), ("places", PLACES)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    toy_folder(lm, folder).rename(folder / "lm")
    model = toy_model("t5", seed=1) if encoder == "t5" else toy_encoder_model(encoder)
    model.save_pretrained(folder / "encoder")
    toy_encoder_tokenizer(encoder).save_pretrained(folder / "encoder")
    return folder


def settings(world: Path, **changes: Any) -> dict[str, Any]:
    """The config as plain values."""
    colours, places = (
        dict.fromkeys(("train", "dev", "test"), str(world / f"{n}.jsonl")) for n in ("colours", "places")
    )
    return {
        "kind": "multitask",
        "workspace": str(world / "work"),
        "lm": {"model": str(world / "lm")},
        "encoder": {"model": str(world / "encoder")},
        "prompt": ID_PT,
        "tasks": [
            {
                "name": "colours",
                **colours,
                "template": "text {text} answer",
                "verbalizer": {"red": "red", "blue": "blue"},
            },
            {"name": "places", **places, "template": "where is {text}", "target": "{label}", "metric": "em_f1"},
        ],
        "input": {"max_tokens": 24, "keep_end": 4, "answer_tokens": 6},
        "generation": {"max_new_tokens": 4},
        "training": {"steps": 4, "batch_size": 4, "eval_every": 2, "learning_rate": 0.05, "warmup_steps": 0},
    } | changes


def configured(world: Path, **changes: Any) -> Any:
    """The validated config."""
    return load_config(settings(world, **changes))
