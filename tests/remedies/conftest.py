"""Fixtures of the tests of remedies."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """One thread keeps small models quick."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _only_what_the_test_made() -> Iterator[None]:
    """Acts look for live schedulers and averages: only among objects of the test itself, which is quick."""
    gc.freeze()
    yield
    gc.unfreeze()
