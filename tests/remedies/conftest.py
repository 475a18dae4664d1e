"""Fixtures of the tests of remedies."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """One thread keeps small models quick."""
    torch.set_num_threads(1)
