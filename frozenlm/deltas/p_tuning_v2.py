"""P-tuning v2: Liu et al. 2021, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning", arXiv 2110.07602.

A prefix at every layer of an encoder or a decoder, trained itself and with no network around it, and a linear head in
the place of a verbalizer. The head is a thing of its own (`frozenlm/task_heads.py`), which goes with any delta:

    delta, head = PTuningV2.create(encoder, 20), ClassificationHead.create(encoder, labels)
    classification_loss(encoder, head, delta, examples)                              # `frozenlm/encoder_tasks.py`

The paper's lengths: below 20 for easy classification, about 100 for tagging. Beyond the head it differs from direct
prefix tuning in name and defaults alone; the start (real keys and values of a text) and `position_offset` are ours to
choose, as in `prefix_tuning.py`.
Shapes: P prefix, L attention layers of a place, K key-value heads, D head size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from frozenlm.attention import Place
from frozenlm.attention_places import Layers
from frozenlm.deltas.attention_prefix import AttentionPrefix
from frozenlm.deltas.prefix_initializers import PrefixInitializer
from frozenlm.deltas.prefix_parameters import prefix_numbers, started_prefixes

KIND = "p_tuning_v2"


class PTuningV2(AttentionPrefix):
    """P trained keys and values a layer."""

    KIND = KIND

    @classmethod
    def create(
        cls,
        host: Any,
        length: int = 20,
        *,
        init: PrefixInitializer | None = None,
        places: Sequence[Place] | None = None,
        position_offset: bool = True,
        seed: int = 0,
    ) -> "PTuningV2":
        """A new prefix for an LM or an encoder; arguments and errors as `PrefixTuning.create`."""
        return cls(started_prefixes(host, length, init, places, seed), position_offset=position_offset)


def parameter_count(layers: Mapping[Place, Layers], length: int) -> int:
    """How many numbers are trained: P x 2 L K D a place."""
    return prefix_numbers(layers, length)
