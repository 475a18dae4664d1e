"""Healthy runs of every kind, drawn at random: no rule says a word, not on the way either."""

import numpy as np
import pytest

from tests.diagnose.families import FAMILIES
from trainmedic.diagnose.judge import judge

DRAWS = 40


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_told(family: str) -> None:
    for seed in range(DRAWS):
        history = FAMILIES[family](np.random.default_rng(seed))
        for part in (1.0, 0.6, 0.3):
            history.drop_after(history.first_step + int(part * (history.last_step - history.first_step)))
            diagnosis = judge(history)
            assert [(seed, part, finding) for finding in diagnosis.findings if finding.severity != "info"] == []
            assert diagnosis.errors == ()
