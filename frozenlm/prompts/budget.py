"""Equal-parameter settings: the size at which each prompt method trains as many numbers as another.

Methods (ID-PT and the baselines beside it, arXiv 2204.10019, section 2) are compared fairly at one number of trained
parameters, so each method's own size is fitted to a budget:

    soft prompt, task prompts   length P
    IDPG                        bottleneck d
    ATTEMPT                     width r of its network
    ID-PT                       width of its cross-attention network

Our choice: the largest size within the budget. A budget below the smallest size is an error, and never stretched.
"""

from collections.abc import Callable

from frozenlm.errors import ConfigError

MOST = 2**40  # a size beyond any module: reached only when the count does not grow with the size


def fit_to_budget(count: Callable[[int], int], budget: int, *, step: int = 1) -> int:
    """The largest size, a multiple of `step`, with count(size) <= budget.

    count: trained parameters at a size; grows with the size
    budget: trained parameters
    step: what sizes are multiples of, e.g. heads or PHM factors that must divide a width

    Raises: ConfigError when the smallest size is over the budget, or the count does not grow.
    """
    if step < 1:
        raise ConfigError(f"fit_to_budget: step is {step}; expected a whole number of at least 1")
    if count(step) > budget:
        raise ConfigError(
            f"a budget of {budget:,} trained parameters is too small: the smallest size, {step}, trains "
            f"{count(step):,}; raise the budget, or shrink what else the method trains"
        )
    fits, over = 1, 2  # in steps
    while count(over * step) <= budget:
        fits, over = over, 2 * over
        if over > MOST:
            raise ConfigError("fit_to_budget: the number of parameters does not grow with the size; check the count")
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (middle, over) if count(middle * step) <= budget else (fits, middle)
    return fits * step
