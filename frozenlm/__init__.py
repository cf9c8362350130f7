"""The frozen LM and everything that is trained around it.

Names are loaded on first use, so that `import frozenlm` costs nothing and `frozenlm.errors` works without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frozenlm.decoding import Generation
    from frozenlm.encoder import FrozenEncoder
    from frozenlm.fingerprint import Verification
    from frozenlm.lm import FrozenLM, Output
    from frozenlm.memory import Memory
    from frozenlm.prompts.input_dependent import InputDependentPrompt
    from frozenlm.prompts.soft_prompt import SoftPrompt
    from frozenlm.rows import Row, Segment, Soft, Tokens
    from frozenlm.training import fit

__version__ = "0.1.0"

_HOMES = {
    "FrozenEncoder": "frozenlm.encoder",
    "FrozenLM": "frozenlm.lm",
    "Generation": "frozenlm.decoding",
    "InputDependentPrompt": "frozenlm.prompts.input_dependent",
    "Memory": "frozenlm.memory",
    "Output": "frozenlm.lm",
    "Row": "frozenlm.rows",
    "Segment": "frozenlm.rows",
    "Soft": "frozenlm.rows",
    "SoftPrompt": "frozenlm.prompts.soft_prompt",
    "Tokens": "frozenlm.rows",
    "Verification": "frozenlm.fingerprint",
    "fit": "frozenlm.training",
}

__all__ = [
    "FrozenEncoder",
    "FrozenLM",
    "Generation",
    "InputDependentPrompt",
    "Memory",
    "Output",
    "Row",
    "Segment",
    "Soft",
    "SoftPrompt",
    "Tokens",
    "Verification",
    "fit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'frozenlm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
