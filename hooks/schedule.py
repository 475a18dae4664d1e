"""Which steps are measured."""


class Schedule:
    """Measures the first ``FULL`` steps, then pairs: every ``interval``-th step and the one after it.

    Pairs, because what consecutive steps have in common (the cosine of their gradients) needs both. Which steps are
    measured follows from the step number and the recorded changes of the interval alone; the clock may only lengthen
    the interval. It doubles when watching has cost more than its free allowance and its share of the time so far, but
    never beyond a fiftieth of the steps already taken (or to be taken, where the total is known): at least 50 evenly
    spread measurements remain. With ``every`` given, the clock has no say: every ``every``-th step is measured.
    """

    ALLOWANCE = 2.0  # seconds that any run grants, so that short runs are seen in full
    FLOOR = 0.0003  # seconds a step that are granted however short the step is
    FULL = 20  # steps at the start that are always measured
    SPREAD = 50  # measurements that are always made after them

    def __init__(self, *, every: int | None = None, budget: float = 0.01, total_steps: int | None = None) -> None:
        self.pairs = every is None
        self.clock = every is None
        self.budget = budget
        self.total_steps = total_steps
        self.interval = every or 1
        self.changes: list[tuple[int, int]] = []
        self.spent = 0.0
        self.measured = 0

    def measures(self, step: int) -> bool:
        """Whether this step is measured; steps count from 0."""
        return step < self.FULL or step % self.interval < (2 if self.pairs else 1)

    def deterministic(self) -> None:
        """Leave the clock out: several processes that measure together must measure the same steps."""
        if self.clock:
            self.clock, self.interval = False, 32

    def account(self, step: int, elapsed: float) -> None:
        """After a measured step: lengthen the interval if the cost so far is over the budget.

        ``elapsed`` is the time in seconds since watching began.
        """
        self.measured += 1
        if not self.clock or step < self.FULL:
            return
        granted = self.ALLOWANCE + max(self.budget * elapsed, self.FLOOR * step)
        longest = max(1, ((self.total_steps or step) - self.FULL) // self.SPREAD)
        if self.spent > granted and 2 * self.interval <= longest:
            self.interval *= 2
            self.changes.append((step, self.interval))
