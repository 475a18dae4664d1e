"""Real small trainings for tests of rules: two blobs of classes or a smooth function, in under a second each."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import trainmedic
from trainmedic.diagnose import Finding, Rule
from trainmedic.history import History

Step = Callable[[nn.Module, Any, Tensor, Tensor], Tensor]


def blobs(count: int = 256, classes: int = 4, features: int = 16) -> tuple[Tensor, Tensor]:
    """Inputs of unit scale and their classes, well apart."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, features, generator=random)
    labels = torch.randint(0, classes, (count,), generator=random)
    return centres[labels] + 0.5 * torch.randn(count, features, generator=random), labels


def curve(count: int = 256, features: int = 8) -> tuple[Tensor, Tensor]:
    """Inputs of unit scale and targets (n, 1) of about unit variance."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, features, generator=random)
    return x, x[:, :1] + 0.5 * x[:, 1:2].square() - 0.5


def net(inputs: int, outputs: int, *last: nn.Module, width: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs), *last)


def adam(model: nn.Module, rate: float = 3e-3) -> Any:
    return torch.optim.Adam(model.parameters(), lr=rate)


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    loss: Any = None,
    *,
    optimizer: Any = None,
    step: Step | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    epochs: int = 10,
    batch: int = 32,
    before_epoch: Callable[[nn.Module], Any] = lambda model: model.train(),
    total: bool = True,
) -> History:
    """Train as tutorials do, watched; rules do not judge on the way. ``step`` replaces the usual one."""
    torch.set_num_threads(1)
    criterion = loss or nn.CrossEntropyLoss()
    optimizer = optimizer or adam(model)
    x, y = data
    steps = epochs * (len(x) // batch)
    settings = {"ignore": [rule.code for rule in catalogue()]}
    watch = trainmedic.watch(
        model, optimizer, loss_fn=criterion, total_steps=steps if total else None, settings=settings,
        on_finding=lambda finding: None,
    )  # fmt: skip
    with watch as medic:
        for _ in range(epochs):
            before_epoch(model)
            order = torch.randperm(len(x))[: len(x) // batch * batch].view(-1, batch)
            for inputs, targets in medic.batches([(x[rows], y[rows]) for rows in order]):
                if step is not None:
                    medic.log(step(model, optimizer, inputs, targets))
                    continue
                optimizer.zero_grad()
                value = criterion(model(inputs), targets)
                value.backward()
                optimizer.step()
                medic.log(value)
            if validation is not None:
                model.eval()
                with torch.no_grad():
                    outputs = model(validation[0])
                    metrics = {}
                    if validation[1].dtype == torch.int64:
                        metrics["accuracy"] = (outputs.argmax(1) == validation[1]).float().mean()
                    medic.log_validation(criterion(outputs, validation[1]), **metrics)
        medic.report()
    return medic.history


def catalogue() -> tuple[type[Rule], ...]:
    from trainmedic.diagnose.judge import catalogue as rules

    return rules()


def told(rule: Rule, history: History, cuts: int = 12) -> list[Finding]:
    """What a rule says at the end; it must not have said more on the way (that would be taken back)."""
    found = list(rule.check(history)) if rule.unmet(history) is None else []
    early = list(_on_the_way(rule, history, cuts))
    assert found or early == [], "told on the way, and taken back"
    return found


def _on_the_way(rule: Rule, history: History, cuts: int) -> Iterator[Finding]:
    import copy

    part, length = copy.deepcopy(history), history.last_step + 1
    for cut in range(cuts - 1, 0, -1):
        part.drop_after(length * cut // cuts)
        if rule.unmet(part) is None:
            yield from rule.check(part)
