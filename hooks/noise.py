"""What several backward passes of one step tell: what was left from before, and how noisy gradients are."""

from typing import Any

import torch
from torch import Tensor

from trainmedic.hooks.reading import Reading
from trainmedic.hooks.sampling import dense, thinned


class NoiseScale:
    """Compares the gradient of the first micro-batch of a step with that of all of them.

    With k micro-batches of b samples, E|g_1|^2 = |G|^2 + S/b and E|g_mean|^2 = |G|^2 + S/(k b), so that
    |G|^2 = (k |g_mean|^2 - |g_1|^2) / (k - 1) and S/b = (|g_1|^2 - |g_mean|^2) k / (k - 1), where S is the trace of
    the covariance of one sample's gradient (McCandlish et al. 2018, arXiv:1812.06162, appendix A.1). Both are noisy
    and may come out negative: average each over many steps before dividing. Whether the user divides the loss by k
    does not matter to the ratio.
    """

    def __init__(self) -> None:
        self.passes = 0
        self._looked = False
        self._first: Tensor | None = None
        self._last: Tensor | None = None

    def begin(self) -> None:
        """A new step starts."""
        self.passes, self._looked, self._first, self._last = 0, False, None, None

    def add(self, norms: Tensor) -> None:
        """A backward pass has ended and left gradients of these norms."""
        self.passes += 1
        if self._first is None:
            self._first = norms
        self._last = norms

    def left_over(self, parameter: Tensor, incoming: Tensor, reading: Reading) -> None:
        """Before the step's first backward pass adds to a gradient: how large what is there already is beside it."""
        if self.passes or self._looked:
            return
        self._looked = True
        if parameter.grad is None:
            reading.put("gradient/carried", 0.0)
            return
        with torch.no_grad():
            old, new = thinned(dense(parameter.grad)).float().norm(), thinned(dense(incoming)).float().norm()
            reading.put("gradient/carried", old / (old + new).clamp_min(torch.finfo(old.dtype).tiny))

    def put(self, reading: Reading, observed: dict[str, Any]) -> None:
        """At the end of the step."""
        if self.passes:
            observed["accumulation"] = self.passes
        if self.passes < 2 or self._first is None or self._last is None or self._first.shape != self._last.shape:
            return
        k = self.passes
        first, mean = self._first.square().sum(), self._last.square().sum() / k**2
        reading.put("gradient/signal", (k * mean - first) / (k - 1))
        reading.put("gradient/noise", (first - mean) * (k / (k - 1)))
