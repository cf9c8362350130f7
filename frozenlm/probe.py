"""Before an LM is used: does our way of running it give the model's own logits?

The head, the embeddings, the positions and the memory are driven by us (`heads.py`, `backbone.py`), so an architecture
with a peculiarity that we do not repeat would be wrong in silence. At load, a few tokens go both ways; a difference, or
an LM that looks ahead, is refused.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frozenlm.errors import ConfigError
from frozenlm.rows import Tokens

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

FIRST, SECOND = (3, 1, 4, 1, 5), (2, 6, 5, 3)


@torch.no_grad()
def check_logits(lm: "FrozenLM") -> None:
    """Compare two short texts of different lengths, read in two parts, with the plain model.

    Raises:
        ConfigError: the logits differ.
    """
    texts = [[i % lm.vocab_size for i in ids] for ids in (FIRST, SECOND)]
    if lm.kind == "encoder-decoder":
        rows, answers = [[Tokens.of(t)] for t in texts], [texts[1], texts[0]]
        starts = [Tokens(lm.start_ids)]
        ours = lm.forward(rows, decoder_rows=[[*starts, Tokens.of(a)] for a in answers]).logits
        for text, answer, mine in zip(texts, answers, ours, strict=True):
            decoder = torch.tensor([[*lm.start_ids, *answer]], device=lm.device)
            theirs = lm.model(input_ids=torch.tensor([text], device=lm.device), decoder_input_ids=decoder).logits[0]
            _compare(lm, mine, theirs)
        return
    memory = lm.read([[Tokens.of(texts[0][:3])], [Tokens.of(texts[1][:1])]])
    ours = lm.forward([[Tokens.of(texts[0][3:])], [Tokens.of(texts[1][1:])]], memory=memory).logits
    whole = lm.forward([[Tokens.of(t)] for t in texts]).logits
    for number, text in enumerate(texts):
        theirs = lm.model(input_ids=torch.tensor([text], device=lm.device), use_cache=False).logits[0]
        _compare(lm, whole[number], theirs)
        _compare(lm, ours[number], theirs[-len(ours[number]) :])


def _compare(lm: "FrozenLM", ours: Tensor, theirs: Tensor) -> None:
    tolerance = (0.1 if lm.dtype in (torch.bfloat16, torch.float16) else 1e-3) * max(
        1.0, float(theirs.float().abs().max())
    )
    difference = float((ours.float() - theirs.float()).abs().max())
    if not difference <= tolerance:
        raise ConfigError(
            f"{type(lm.model).__name__} cannot be driven as a frozen LM: our logits differ from its own by "
            f"{difference:.3g} (allowed {tolerance:.3g}); it may attend in both directions, or do something unusual "
            "around its head or cache. Use a plain causal or seq2seq LM"
        )
