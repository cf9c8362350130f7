"""What can go wrong around a frozen LM. Each message says what was wrong, what was got, what was expected and what to
change."""


class FrozenLMError(Exception):
    """Root of all errors of this package and of `pipelines`."""


class ConfigError(FrozenLMError):
    """A setting is unknown, of the wrong type, out of range or in conflict with another."""


class ShapeError(FrozenLMError):
    """A tensor or a sequence has another size than the operation needs."""


class DivergedError(FrozenLMError):
    """A loss or a gradient that is not finite."""


class FrozenViolationError(FrozenLMError):
    """The frozen LM is not, or would not stay, what it was when it was loaded."""


class CheckpointError(FrozenLMError):
    """A saved module is damaged, unsafe, or was trained for another LM."""


class MissingExtraError(FrozenLMError):
    """An optional dependency is not installed; the message names the extra that brings it."""
