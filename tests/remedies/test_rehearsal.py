"""Steps that the medic takes by itself: they are the user's steps, and leave nothing behind, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.remedies.patients import OPTIMIZERS, Patient, different, patient, photograph
from trainmedic.remedies._clocks import generators
from trainmedic.remedies._rehearsal import Example, Form, Rehearsal, Unlike
from trainmedic.remedies._state import State


def example(seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    return Example([torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)])


def rehearsal(sick: Patient, **options: Any) -> Rehearsal:
    given: dict[str, Any] = {"loss_fn": F.cross_entropy, "form": Form(scheduled=((sick.scheduler, 1),))}
    return Rehearsal(sick.run, examples=[example(i) for i in range(4)], apart=[example(9)], **{**given, **options})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_leave_nothing_behind_with_any_optimizer(optimizer: str) -> None:
    sick = patient(optimizer)
    before = photograph(sick)
    steps = rehearsal(sick)
    with steps.quietly():
        losses = [steps.step(i) for i in range(5)]
        assert different(before, photograph(sick))
        (judged,) = steps.judge(steps.apart)
    assert not different(before, photograph(sick))
    assert all(loss == loss for loss in [*losses, judged])
    assert steps.spent == pytest.approx(5 + 1 / 3)


def test_an_error_within_leaves_nothing_behind() -> None:
    sick = patient()
    before = photograph(sick)
    steps = rehearsal(sick)

    def broken() -> None:
        with steps.quietly():
            steps.step(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not different(before, photograph(sick))


class Noting(nn.Module):
    """A module that notes things about itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(6, 3), nn.Dropout(0.5)
        self.calls, self.seen, self.last = 0, [0.0], torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(float(x.detach().sum()))
        self.last.add_(1)
        self.new = x
        return self.drop(self.linear(x))


def test_what_modules_note_about_themselves_is_put_back() -> None:
    sick = patient(model=Noting)
    model: Any = sick.model
    seen, last = model.seen, model.last
    before = model.calls, list(seen), last.clone(), model.new
    steps = rehearsal(sick)
    with steps.quietly():
        steps.step(0)
        assert model.calls == before[0] + 1
    assert (model.calls, model.seen) == before[:2]
    assert model.seen is seen
    assert model.last is last
    assert torch.equal(last, before[2])
    assert model.new is before[3]


def test_the_users_hooks_do_not_fire_and_are_there_afterwards() -> None:
    sick = patient()
    told: list[str] = []
    layer: nn.Module = sick.model[0]  # type: ignore[index]
    handles = [
        layer.register_forward_hook(lambda *_: told.append("forward")),
        layer.register_full_backward_hook(lambda *_: told.append("backward")),
        nn.modules.module.register_module_forward_pre_hook(lambda *_: told.append("global")),
        sick.optimizer.register_step_post_hook(lambda *_: told.append("step")),
        layer.weight.register_hook(lambda _: told.append("gradient")),
        layer.weight.register_post_accumulate_grad_hook(lambda _: told.append("accumulated")),
    ]
    try:
        steps = rehearsal(sick)
        with steps.quietly():
            steps.step(0)
        assert told == []
        sick.step()
        assert set(told) == {"forward", "backward", "global", "step", "gradient", "accumulated"}
    finally:
        for handle in handles:
            handle.remove()
    told.clear()
    sick.step()
    assert told == []


# -- is it the user's step? ------------------------------------------------------------------------------------------


def plain(sick: Patient, batch: Any) -> Tensor:
    sick.optimizer.zero_grad()
    return piled(sick, batch)


def piled(sick: Patient, batch: Any) -> Tensor:
    loss = F.cross_entropy(sick.model(batch[0]), batch[1])
    loss.backward()
    sick.optimizer.step()
    return loss.detach()


def clipped(sick: Patient, batch: Any) -> Tensor:
    sick.optimizer.zero_grad()
    loss = F.cross_entropy(sick.model(batch[0]), batch[1])
    loss.backward()
    nn.utils.clip_grad_norm_(sick.model.parameters(), 0.01)
    sick.optimizer.step()
    return loss.detach()


def compared(step: Callable[[Patient, Any], Tensor], **options: Any) -> Rehearsal:
    sick = patient("SGD", Dropping)
    steps = rehearsal(sick, form=None)
    before, random = State.capture(sick.run), generators()
    loss = step(sick, example(0).batch)
    after = photograph(sick)
    try:
        steps.compare(before, [example(0)], random, logged=float(loss), **options)
    finally:
        assert not different(after, photograph(sick))
    return steps


class Dropping(nn.Sequential):
    """Random numbers decide what it computes."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))


@pytest.mark.parametrize(
    ("step", "form"),
    [(plain, Form()), (piled, Form(zeroes=False)), (clipped, Form(clip=0.01))],
    ids=["plain", "piled", "clipped"],
)
def test_a_step_is_known_again(step: Callable[[Patient, Any], Tensor], form: Form) -> None:
    assert compared(step, clip=0.01).form == form


def wobbling(sick: Patient, batch: Any) -> Tensor:
    loss = plain(sick, batch)
    for parameter in sick.model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return loss


def weighed(sick: Patient, batch: Any) -> Tensor:
    return plain(sick, batch) * 2


@pytest.mark.parametrize(
    ("step", "reason"), [(wobbling, "moved the parameters otherwise"), (weighed, "was logged")], ids=["moved", "loss"]
)
def test_a_step_of_another_kind_is_not_taken_for_the_users(step: Callable[[Patient, Any], Tensor], reason: str) -> None:
    with pytest.raises(Unlike, match=reason):
        compared(step)


def test_judging_moves_nothing_and_is_in_evaluation_mode() -> None:
    sick = patient(model=Dropping)
    before = photograph(sick)
    steps = rehearsal(sick)
    with steps.quietly():
        assert steps.judge(steps.apart) == steps.judge(steps.apart)
        assert not different(before, photograph(sick))
