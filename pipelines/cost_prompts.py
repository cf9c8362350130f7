"""What P-tuning, low-rank and intrinsic prompts train. Served, they are plain vectors: nothing is computed an input."""

from __future__ import annotations

from frozenlm.prompts.low_rank import LowRankPrompt
from frozenlm.prompts.p_tuning import PTuning
from frozenlm.prompts.prompt_autoencoder import PromptAutoEncoder
from pipelines import config as c


def trained_numbers(block: c.PTuning | c.LowRank | c.AutoEncoder | c.Intrinsic, hidden_size: int) -> int:
    """Trained parameters of a prompt for an LM of that hidden size."""
    if isinstance(block, c.PTuning):
        return PTuning.parameter_count(length=block.length, hidden_size=hidden_size, form=block.form)
    if isinstance(block, c.LowRank):
        sizes = {"length": block.length, "hidden_size": hidden_size, "rank": block.rank}
        return LowRankPrompt.parameter_count(**sizes, form=block.form)
    if isinstance(block, c.AutoEncoder):
        sizes = {"length": block.length, "hidden_size": hidden_size, "dimension": block.dimension}
        return PromptAutoEncoder.parameter_count(**sizes, hidden=block.hidden)
    return block.dimension
