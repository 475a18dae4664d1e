"""When a backward pass has ended, told by few hooks."""

import pytest
import torch
from torch import Tensor, nn

import trainmedic
from trainmedic.hooks.backward import Backward


class Ends:
    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.count = 0
        self.backward = Backward(self.ended, lambda parameter, gradient: None)
        self.backward.watch(parameters, parameters)

    def ended(self) -> None:
        self.count += 1


def hooks(parameters: list[nn.Parameter]) -> int:
    return sum(len(p._post_accumulate_grad_hooks or ()) for p in parameters)


def test_few_hooks_are_left_and_each_pass_is_still_told() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
    parameters = list(model.parameters())
    ends = Ends(parameters)
    assert hooks(parameters) == 40
    for _ in range(3):
        model(torch.randn(2, 4)).sum().backward()
    ends.backward.settle()
    assert hooks(parameters) == 1
    for _ in range(3):
        model(torch.randn(2, 4)).sum().backward()
    assert ends.count == 6
    ends.backward.remove()
    assert hooks(parameters) == 0


def test_passes_through_different_parts_each_have_a_sentinel() -> None:
    body, heads = nn.Linear(4, 4), [nn.Linear(4, 2), nn.Linear(4, 3)]
    parameters = [*body.parameters(), *heads[0].parameters(), *heads[1].parameters()]
    ends = Ends(parameters)
    x = torch.randn(2, 4)
    passes = [
        lambda: heads[0](body(x)).sum(),
        lambda: heads[1](x).sum(),
        lambda: heads[0](x.detach()).sum(),
    ]
    for loss in passes:
        loss().backward()
    ends.backward.settle()
    assert hooks(parameters) == 2
    for loss in passes:
        loss().backward()
    assert ends.count == 6


def test_a_backward_pass_that_raises_does_not_deafen() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            raise RuntimeError("broken on purpose")

    first, second = nn.Linear(4, 4), nn.Linear(4, 2)
    ends = Ends([*first.parameters(), *second.parameters()])
    with pytest.raises(RuntimeError, match="on purpose"):
        second(Broken.apply(first(torch.randn(2, 4)))).sum().backward()
    assert ends.count == 0
    second(first(torch.randn(2, 4))).sum().backward()
    assert ends.count == 1


def test_a_new_kind_of_pass_is_noticed_at_its_first_step() -> None:
    torch.manual_seed(0)
    body, extra = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.ModuleList([body, extra])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms: list[float] = []
    with trainmedic.watch(model, optimizer, settings={"every": 1_000}) as medic:
        for i in range(60):
            optimizer.zero_grad()
            (body if i < 25 else extra)(torch.randn(2, 4)).square().mean().backward()
            norm = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
            norms.append(norm)
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
    assert medic.report().history.series("gradient/norm").steps.tolist() == list(range(60))
    seen = medic.history.series("gradient/norm").values
    assert seen[25] == pytest.approx(1e-3, rel=1e-2), "read right before the step, after clipping"
    assert seen[26:].tolist() == pytest.approx(norms[26:], rel=1e-4), "and from then on before it"
