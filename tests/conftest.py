"""Shared by all tests: where the real data lie, and calm threads."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")


def shared_folder() -> Path | None:
    """The folder of real data and models: FROZENLM_SHARED, else `shared` beside the checkout; None where absent."""
    named = os.environ.get("FROZENLM_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; the test is skipped where it is absent."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("no folder of real data: set FROZENLM_SHARED, or put it at ../shared beside the checkout")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked `shared_data` is skipped with a reason where the folder is absent."""
    if shared_folder() is None:
        skip = pytest.mark.skip(reason="needs the real data: set FROZENLM_SHARED, or put it at ../shared")
        for item in items:
            if item.get_closest_marker("shared_data"):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Toy models are faster on one thread, and sums come out the same everywhere."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
