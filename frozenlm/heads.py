"""From final hidden states to logits, called by us and only where logits are needed.

A frozen bf16 head that is applied to a sliced batch takes a copying path in torch on CPUs, 150 times slower than on
contiguous memory; and most positions of a batch are never scored. So the positions are gathered first, into one
contiguous matrix. What an architecture does around its head (scale, bias, soft cap) is repeated here from its config;
`probe.py` compares the result with the model's own logits at load and refuses the LM when they differ.
"""

from typing import Any

import torch
from torch import Tensor

from frozenlm.errors import ConfigError


class Head:
    """hidden [n, H] -> logits [n, V], in the LM's dtype.

    Args:
        model: a transformers model with an output embedding.

    Raises:
        ConfigError: the model has no language-model head.
    """

    def __init__(self, model: Any) -> None:
        project = model.get_output_embeddings()
        if project is None:
            raise ConfigError(f"{type(model).__name__} has no language-model head; load a causal or seq2seq LM")
        config = model.config.get_text_config(decoder=True)
        self._project = project
        # T5 with a tied head scales the hidden state.
        self._before = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else None
        self._bias: Tensor | None = getattr(model, "final_logits_bias", None)  # BART and its kin
        self._after = self._logit_factor(config)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later

    @staticmethod
    def _logit_factor(config: Any) -> float | None:
        divisor = getattr(config, "logits_scaling", None)  # Granite
        factor = getattr(config, "logit_scale", None)  # Cohere
        multiplier = getattr(config, "lm_head_multiplier", None)  # Falcon-H1
        if isinstance(divisor, float | int) and divisor != 1:
            return 1 / divisor
        for value in (factor, multiplier):
            if isinstance(value, float | int) and value != 1:
                return float(value)
        return None

    def __call__(self, hidden: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        if self._before is not None:
            hidden = hidden * self._before
        logits = self._project(hidden)
        if self._bias is not None:
            logits = logits + self._bias.view(-1).to(logits.device)
        if self._after is not None:
            logits = logits * self._after
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits
