"""TM204 and its look-alikes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.diagnose.trainings import adam, blobs, net, told, train
from trainmedic.diagnose import Severity
from trainmedic.diagnose.rules.missing_zero_grad import MissingZeroGrad
from trainmedic.history import History

RULE = MissingZeroGrad()


def forgetful(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def test_a_run_without_zero_grad_is_told_early() -> None:
    [finding] = told(RULE, train(net(16, 4), blobs(), step=forgetful))
    assert finding.severity == Severity.ERROR
    assert finding.detected_at <= 30


def test_zeroed_once_per_epoch() -> None:
    model = net(16, 4)
    optimizer = adam(model)

    def start(model: nn.Module) -> None:
        model.train()
        optimizer.zero_grad()

    assert told(RULE, train(model, blobs(1024), step=forgetful, optimizer=optimizer, before_epoch=start))


@pytest.mark.parametrize("to_none", [True, False])
def test_an_ordinary_loop_is_healthy(to_none: bool) -> None:
    def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=to_none)
        return forgetful(model, optimizer, x, y)

    assert told(RULE, train(net(16, 4), blobs(), step=step)) == []


def test_accumulation_is_healthy() -> None:
    def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        for part, labels in zip(x.chunk(4), y.chunk(4), strict=True):
            (nn.functional.cross_entropy(model(part), labels) / 4).backward()
        optimizer.step()
        return nn.functional.cross_entropy(model(x), y).detach()

    assert told(RULE, train(net(16, 4), blobs(), step=step)) == []


def test_an_attack_before_zero_grad_is_healthy() -> None:
    """Adversarial training: the backward pass to the inputs leaves gradients in the weights, zeroed before the step."""

    def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        nn.functional.cross_entropy(model(x), y).backward()
        assert x.grad is not None
        attacked = (x + 0.1 * x.grad.sign()).detach()
        optimizer.zero_grad()
        return forgetful(model, optimizer, attacked, y)

    assert told(RULE, train(net(16, 4), blobs(), step=step)) == []


def test_a_closure_is_healthy() -> None:
    model = net(16, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)

    def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return optimizer.step(closure)  # type: ignore[no-any-return]

    assert told(RULE, train(model, blobs(), step=step, optimizer=optimizer, epochs=4)) == []


@pytest.mark.parametrize("seed", range(20))
def test_one_left_over_gradient_of_any_size_is_healthy(seed: int) -> None:
    random = np.random.default_rng(seed)
    norms = np.exp(random.standard_normal(500))
    assert told(RULE, History.of(gradient_carried=norms[:-1] / (norms[:-1] + norms[1:]))) == []


def test_several_optimizers_are_not_judged() -> None:
    history = History.of(gradient_carried=[0.9] * 50, facts={"optimizers": 2})
    assert "several optimizers" in str(RULE.unmet(history))


def test_mended_is_healthy() -> None:
    assert told(RULE, History.of(gradient_carried=[0.0] * 100)) == []
    assert list(RULE.check(History.of(gradient_carried=[0.9] * 50 + [0.0] * 10))) == []
