"""What the tests of deltas share."""

from typing import Any

import torch
from torch import Tensor

from frozenlm.deltas.attach import attach
from frozenlm.lm import FrozenLM
from frozenlm.rows import Tokens

LOGITS_ROWS = [[Tokens((5, 6, 7, 8, 9))]]
ROWS = [[Tokens(tuple(range(5, 9 + 3 * k)))] for k in range(3)]
ANSWERS = [[40, 41], [42], [43, 44, 45]]


def logits(lm: FrozenLM) -> Tensor:
    """[n, V] of one row; of an encoder-decoder's decoder."""
    decoder_rows = [[Tokens((0, 20, 21))]] if lm.kind == "encoder-decoder" else None
    with torch.no_grad():
        return lm.forward(LOGITS_ROWS, decoder_rows=decoder_rows).logits[0]


def noisy(delta: Any, *, seed: int = 0, scale: float = 0.3) -> Any:
    """The delta, with noise on all that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return delta


def check_padding(lm: FrozenLM, delta: Any) -> None:
    """Rows of unlike length in one batch score as they do alone, and go on alike; not as without the delta."""
    plain = lm.score(ROWS, ANSWERS)
    with attach(lm, delta):
        together = lm.score(ROWS, ANSWERS)
        alone = [lm.score([row], [answer])[0] for row, answer in zip(ROWS, ANSWERS, strict=True)]
        batch = [one.ids for one in lm.generate(ROWS, max_new_tokens=4)]
        single = [lm.generate([row], max_new_tokens=4)[0].ids for row in ROWS]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-4, rtol=1e-5)
    assert batch == single
    assert all(abs(one - other) > 1e-4 for one, other in zip(together, plain, strict=True))
