"""When the rules judge a run that goes on: moments that follow from its steps alone, ever further apart.

Judging costs about the same however long a run is (what is recorded is bounded), and the number of moments grows with
the logarithm of the steps: what judging costs a step falls towards nothing, without a look at the clock.
"""

FIRST = 10
"""Steps between two judgements, at least."""
SHARE = 20
"""Between two judgements lies a twentieth of what there is to judge, or ``FIRST``."""


class Moments:
    """Regular judgements by step, others after evaluations, and one at once where a number is not finite."""

    def __init__(self) -> None:
        self._since = 0  # where what there is to judge begins
        self._next = FIRST
        self._alarm_from = 0
        self._evaluations, self._next_evaluation = 0, 1

    def due(self, step: int) -> bool:
        """Whether to judge after this step."""
        return step >= self._next

    def judged(self, step: int) -> None:
        """The rules have judged after this step."""
        self._next = step + max(FIRST, (step - self._since) // SHARE)

    def alarm(self, step: int) -> None:
        """Something is not finite: judge at once, unless that was done for another alarm just before."""
        if step >= self._alarm_from:
            self._next = min(self._next, step)
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
        self._next = step + FIRST
