"""What several backward passes of one step tell: what was left from before, and how noisy gradients are."""

from typing import Any

import torch
from torch import Tensor

from trainmedic.hooks.reading import Reading
from trainmedic.hooks.sampling import dense, thinned, unreadable


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
        self._followed: Tensor | None = None  # the parameter by which passes are counted
        self._first: Tensor | None = None
        self._last: Tensor | None = None

    def begin(self) -> None:
        """A new step starts."""
        self.passes, self._followed, self._first, self._last = 0, None, None, None

    def add(self, norms: Tensor) -> None:
        """A backward pass has ended and left gradients of these norms."""
        self._last = norms

    def arrives(self, parameter: Tensor, incoming: Tensor, reading: Reading) -> None:
        """A gradient is about to be added to a parameter's own."""
        old = parameter.grad
        if self._followed is None:
            self._followed = parameter
            self._put_carried(old, incoming, reading)
        if parameter is not self._followed:
            return
        if old is None:  # cleared within the step (a closure, a second look as SAM takes): counting starts anew
            self.passes = 0
        if self.passes == 1:
            self._first = self._last
        self.passes += 1

    @staticmethod
    def _put_carried(old: Tensor | None, incoming: Tensor, reading: Reading) -> None:
        """Before the step's first backward pass: how large what is there already is beside what comes."""
        if old is None or unreadable(dense(old)) or unreadable(dense(incoming)):
            reading.put("gradient/carried", 0.0)
            return
        with torch.no_grad():
            there, new = thinned(dense(old)).float().norm(), thinned(dense(incoming)).float().norm()
            reading.put("gradient/carried", there / (there + new).clamp_min(torch.finfo(there.dtype).tiny))

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
