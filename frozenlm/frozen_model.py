"""What every host of a frozen model does alike: it freezes the model, names it, and proves that it is what it was."""

from typing import Any, ClassVar

from frozenlm import fingerprint as prints
from frozenlm.fingerprint import Verification
from frozenlm.text import TextCodec


class FrozenModel:
    """A pretrained model that stays what it was, and its tokenizer.

    model: a transformers model; frozen from here on, and in eval mode
    closes: whether an input ends with the tokenizer's closing tokens

    Raises: ConfigError for an object that is not a tokenizer.
    """

    WHAT: ClassVar[str] = "LM"  # the model, in messages

    def __init__(self, model: Any, tokenizer: Any, *, closes: bool) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self._codec = TextCodec(tokenizer, closes=closes)
        self._digests = prints.digest_tensors(model)
        self.fingerprint: str = prints.fingerprint(self._digests)

    def verify(self) -> Verification:
        """Compare every weight and buffer with what it was at load, bit by bit."""
        return prints.compare(self._digests, prints.digest_tensors(self.model), self.WHAT)

    def assert_unchanged(self) -> None:
        """Raise unless the model is exactly what it was.

        Raises:
            FrozenViolationError: a weight or buffer changed, a weight can be trained, or it is in training mode.
        """
        prints.check_frozen(self.model, self.verify())
