"""An average of a model's weights, which the model shows itself with in evaluation."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from trainmedic.remedies._graft import Graft


class Average:
    """A guard that keeps an exponential average of a model's trained weights, and exchanges them for it.

    Before step n the average takes in the weights after step n - 1, at ``decay`` or (1 + n) / (10 + n), which is less
    at first. What is exchanged is exchanged back bit for bit, unless somebody else has written to it in between.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.taken = decay, 0
        self.weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]
        self.averages = [weight.detach().clone() for weight in self.weights]
        self._own: list[Tensor] = []  # what training has reached, while the average is shown

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        self.show(False)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(weight) in held for weight in self.weights):
            return
        self.taken += 1
        share = 1 - min(self.decay, (1 + self.taken) / (10 + self.taken))
        torch._foreach_lerp_(self.averages, [weight.detach() for weight in self.weights], share)

    @torch.no_grad()
    def show(self, averaged: bool) -> None:
        """Let the model hold the average, or what training has reached."""
        if averaged and not self._own and self.taken:
            self._own = [weight.detach().clone() for weight in self.weights]
            self._put(self.averages)
        elif not averaged and self._own:
            own, self._own = self._own, []
            if all(map(torch.equal, self.weights, self.averages)):  # or somebody has put something else there
                self._put(own)

    def _put(self, values: list[Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.data.copy_(value)  # past the version counter: graphs of training are not touched


class ShowsAverage(Graft):
    """A model that holds the average of its weights whenever it is in evaluation mode."""

    parts: ClassVar[tuple[str, ...]] = ("medic_average",)
    medic_average: Any

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.medic_average.show(not mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.medic_average.show(not self.training)  # the mode may have been set without a call of train()
        return super().forward(*args, **kwargs)
