"""Trainings in these tests start from one state, whatever ran before them."""

import random

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def seeded() -> None:
    """All random numbers from the start."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
