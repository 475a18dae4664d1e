"""When the rules judge a run that goes on: moments ever further apart, put off a little where steps are short.

Judging costs about the same however long a run is (what is recorded is bounded), and the number of moments grows with
the logarithm of the steps: what judging costs a step falls towards nothing. Where a clock is given, a moment waits
besides until judging has taken no more than its share of the time, but not for long. Without one, moments follow from
the steps alone: runs that may be changed are then changed at the same steps whenever they are repeated.
"""

from collections.abc import Callable

FIRST = 10
"""Steps between two judgements, at least."""
SHARE = 20
"""Between two judgements lies a twentieth of what there is to judge, or ``FIRST``."""
PUT_OFF = 8
"""By the clock a judgement is put off until an eighth lies between them, at most."""
BUDGET = 0.002
"""Share of the time that judging may take before it is put off."""


class Moments:
    """Regular judgements by step, others after evaluations, and one at once where a number is not finite."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._started = clock() if clock else 0.0
        self._spent = 0.0  # seconds of judging
        self._since = 0  # where what there is to judge begins
        self._next = self._latest = FIRST
        self._alarm_from = 0
        self._evaluations, self._next_evaluation = 0, 1

    def due(self, step: int) -> bool:
        """Whether to judge after this step."""
        return step >= self._next and (step >= self._latest or self._affordable())

    def judged(self, step: int) -> None:
        """The rules have judged after this step."""
        self._next = step + max(FIRST, (step - self._since) // SHARE)
        self._latest = step + max(FIRST, (step - self._since) // PUT_OFF) if self._clock else self._next

    def spent(self, seconds: float) -> None:
        """Judging, at a moment of these or another, has taken so long."""
        self._spent += seconds

    def _affordable(self) -> bool:
        return self._clock is None or self._spent <= BUDGET * (self._clock() - self._started)

    def alarm(self, step: int) -> None:
        """Something is not finite: judge at once, unless that was done for another alarm just before."""
        if step >= self._alarm_from:
            self._next = self._latest = min(self._next, step)
            self._alarm_from = step + max(FIRST, (step - self._since) // SHARE)

    def evaluated(self) -> bool:
        """Something was validated: whether to judge now."""
        self._evaluations += 1
        if self._evaluations < self._next_evaluation:
            return False
        self._next_evaluation = self._evaluations + max(1, self._evaluations // SHARE)
        return True

    def restart(self, step: int) -> None:
        """The run was changed before this step; what came before is judged no more."""
        self._since, self._alarm_from = step, step
        self._next = self._latest = step + FIRST
