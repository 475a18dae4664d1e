"""Fixtures of the tests that watch live trainings."""

import pytest
import torch

import trainmedic.medic


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors inside the medic are raised in its own tests; one thread keeps small models quick."""
    monkeypatch.setattr(trainmedic.medic, "RAISE_ERRORS", True)
    torch.set_num_threads(1)
