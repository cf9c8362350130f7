"""Prompting the LM as it is: templates, verbalizers, calibration, demonstrations, ensembles, search; what is learned.

Names are loaded on first use, so that `frozenlm.prompting.grammar` works without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frozenlm.prompting.calibration import ContextualCalibration, DomainPMI
    from frozenlm.prompting.classify import Prediction, Prompt
    from frozenlm.prompting.demonstrations import Demonstrations
    from frozenlm.prompting.ensemble import Ensemble
    from frozenlm.prompting.learned import LearnedPrompt
    from frozenlm.prompting.learned_verbalizers import PrototypicalVerbalizer, SoftVerbalizer
    from frozenlm.prompting.masked import FrozenMaskedLM
    from frozenlm.prompting.soft_slots import SoftSlots
    from frozenlm.prompting.template import Template
    from frozenlm.prompting.verbalizer import Verbalizer

_HOMES = {
    "ContextualCalibration": "calibration",
    "Demonstrations": "demonstrations",
    "DomainPMI": "calibration",
    "Ensemble": "ensemble",
    "FrozenMaskedLM": "masked",
    "LearnedPrompt": "learned",
    "Prediction": "classify",
    "Prompt": "classify",
    "PrototypicalVerbalizer": "learned_verbalizers",
    "SoftSlots": "soft_slots",
    "SoftVerbalizer": "learned_verbalizers",
    "Template": "template",
    "Verbalizer": "verbalizer",
}

__all__ = [
    "ContextualCalibration",
    "Demonstrations",
    "DomainPMI",
    "Ensemble",
    "FrozenMaskedLM",
    "LearnedPrompt",
    "Prediction",
    "Prompt",
    "PrototypicalVerbalizer",
    "SoftSlots",
    "SoftVerbalizer",
    "Template",
    "Verbalizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'frozenlm.prompting' has no attribute {name!r}")
    return getattr(import_module(f"frozenlm.prompting.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
