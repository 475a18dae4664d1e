"""Real sick trainings on real images (scikit-learn's digits), for ``trainmedic demo`` and its benchmark.

Each case trains three times from one seed: sick and left alone, sick and treated, and as its healthy twin, which
differs in the fault alone.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

import trainmedic
from trainmedic.errors import UsageError
from trainmedic.reports.report import Report

Fix = Literal["off", "safe", "unsafe"]
Progress = Callable[[str, int, int], Any]
"""Called with the name of the training, the epochs done and the epochs in all."""

ARMS = ("untreated", "treated", "healthy twin")


class Data(NamedTuple):
    """Images (n, 64) in 0 to 1 and labels (n,), to train on and to validate on."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


@dataclass(frozen=True)
class Case:
    """One sick training: the fault in a sentence, and how to set it up with the fault or without."""

    name: str
    fault: str
    model: Callable[[bool], nn.Module]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    images: int = 1_347
    wrong_labels: Callable[[bool], float] = lambda sick: 0.0
    epochs: int = 24
    batch: int = 64


def load(images: int, wrong: float, seed: int) -> Data:
    """The digits: ``images`` of them to train on, a share of them with a wrong label, and 450 to validate on."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise UsageError("the demo needs scikit-learn: pip install 'trainmedic[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x = torch.tensor(pixels[order] / 16, dtype=torch.float32)
    y = torch.tensor(labels[order], dtype=torch.int64)
    train_y = y[:images].clone()
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(images, generator=generator) < wrong
    train_y[hit] = (train_y[hit] + torch.randint(1, 10, (int(hit.sum()),), generator=generator)) % 10
    return Data(x[:images], train_y, x[-450:], y[-450:])


def deep(activation: type[nn.Module], depth: int, width: int) -> nn.Sequential:
    """A plain multilayer perceptron on 64 pixels with 10 outputs."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def he(model: nn.Module, factor: float = 1.0) -> nn.Module:
    """Draw all weights by He's law, ``factor`` times as large."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter).mul_(factor)
    return model


def killed(sick: bool) -> nn.Module:
    """Every rectifier pushed below zero by its bias, as one step that was far too large leaves it."""
    model = deep(nn.ReLU, 3, 64)
    if sick:
        with torch.no_grad():
            for layer in list(model)[:-1]:
                if isinstance(layer, nn.Linear):
                    layer.bias.fill_(-3.0)
    return model


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Adam with its usual rate."""
    return torch.optim.Adam(parameters, lr=1e-3)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            "vanishing",
            "ten sigmoid layers in a row (twin: rectifiers and He's initialisation)",
            lambda sick: deep(nn.Sigmoid, 10, 64) if sick else he(deep(nn.ReLU, 10, 64)),
            adam,
        ),
        Case(
            "exploding",
            "weights drawn two and a half times too large (twin: He's initialisation)",
            lambda sick: he(deep(nn.ReLU, 5, 64), 2.5 if sick else 1.0),
            momentum,
        ),
        Case("dead", "rectifiers pushed below zero by their biases (twin: untouched)", killed, adam),
        Case(
            "overfitting",
            "300 images, four in ten with a wrong label, a large net (twin: right labels)",
            lambda sick: deep(nn.ReLU, 2, 512),
            adam,
            images=300,
            wrong_labels=lambda sick: 0.4 if sick else 0.0,
            epochs=60,
            batch=32,
        ),
    )
}


@dataclass(frozen=True)
class Outcome:
    """One training of a case: final validation accuracy (0 to 1) and the medic's report."""

    accuracy: float
    report: Report


def train(
    case: Case,
    *,
    sick: bool,
    fix: Fix = "off",
    seed: int = 0,
    logdir: Path | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Outcome:
    """Train one case as a user would, watched."""
    data = load(case.images, case.wrong_labels(sick), seed)
    torch.manual_seed(seed)
    model = case.model(sick)
    optimizer = case.optimizer(model.parameters())
    criterion = nn.CrossEntropyLoss()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.images, data.labels),
        batch_size=case.batch,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )
    medic = trainmedic.watch(
        model,
        optimizer,
        loss_fn=criterion,
        total_steps=case.epochs * len(loader),
        fix=fix,
        on_finding=lambda finding: None,
        logdir=logdir,
        settings={},
    )
    with medic:
        for epoch in range(case.epochs):
            model.train()
            for images, labels in medic.batches(loader):
                optimizer.zero_grad()
                loss = criterion(model(images), labels)
                loss.backward()
                optimizer.step()
                medic.log(loss)
            loss, accuracy = evaluate(model, criterion, data)
            medic.log_validation(loss, accuracy=accuracy)
            if progress:
                progress(epoch + 1, case.epochs)
            if medic.should_stop:
                break
    return Outcome(evaluate(model, criterion, data)[1], medic.report())


@torch.no_grad()
def evaluate(model: nn.Module, criterion: nn.Module, data: Data) -> tuple[Tensor, float]:
    """Validation loss and accuracy (0 to 1)."""
    model.eval()
    output = model(data.validation_images)
    return criterion(output, data.validation_labels), float((output.argmax(1) == data.validation_labels).float().mean())


@dataclass(frozen=True)
class Comparison:
    """One case, three times."""

    case: Case
    untreated: Outcome
    treated: Outcome
    twin: Outcome


def compare(case: Case, *, seed: int = 0, logdir: Path | None = None, progress: Progress | None = None) -> Comparison:
    """Train one case sick, sick and treated, and as its healthy twin, from one seed."""

    def go(arm: str, *, sick: bool, fix: Fix = "off") -> Outcome:
        told = (lambda done, total: progress(arm, done, total)) if progress else None
        return train(case, sick=sick, fix=fix, seed=seed, logdir=logdir / arm if logdir else None, progress=told)

    return Comparison(
        case,
        untreated=go("untreated", sick=True),
        treated=go("treated", sick=True, fix="unsafe"),
        twin=go("healthy twin", sick=False),
    )


def main(case: str | None = None, logdir: Path | str | None = None) -> None:
    """Run the demo in the terminal: one case or all of them; write reports and TensorBoard files to ``logdir``."""
    chosen = [CASES[case]] if case else list(CASES.values())
    home = Path(logdir or "runs/demo")
    console = Console()
    logging.getLogger("trainmedic").setLevel(logging.ERROR)  # what is found and done is shown in the reports
    results = []
    for one in chosen:
        with bars(console) as bar:
            tasks = {arm: bar.add_task(f"{one.name}: {arm}", total=one.epochs) for arm in ARMS}
            results.append(compare(one, logdir=home / one.name, progress=partial(advance, bar, tasks)))
        show(console, results[-1])
    console.print(table(results))
    console.print(f"Each run's report is in its folder in {home} (trainmedic.json).", highlight=False)
    console.print(f"The curves: tensorboard --logdir {home}", highlight=False)


def advance(bar: RichProgress, tasks: dict[str, Any], arm: str, done: int, total: int) -> None:
    """Move a training's bar; one that stops early is done."""
    bar.update(tasks[arm], completed=done, total=total)


def bars(console: Console) -> RichProgress:
    """Progress of the three trainings, on a terminal only."""
    return RichProgress("{task.description:<28}", BarColumn(), MofNCompleteColumn(), console=console, transient=True)


def show(console: Console, result: Comparison) -> None:
    """The diagnosis of the treated run and of the healthy twin."""
    console.rule(f"[bold]{result.case.name}[/]: {result.case.fault}")
    console.print("[bold]The sick run, treated[/]")
    console.print(Text.from_ansi(result.treated.report.to_text(width=console.width, color=console.is_terminal)))
    console.print("[bold]Its healthy twin[/]")
    console.print(Text.from_ansi(result.twin.report.to_text(width=console.width, color=console.is_terminal)))


def table(results: list[Comparison]) -> Table:
    """What was found and done, and what came of it."""
    shown = Table(title="Final validation accuracy", title_justify="left")
    for column in ("case", "found (at step)", "done", "untreated", "treated", "healthy twin"):
        shown.add_column(column, justify="right" if column in ("untreated", "treated", "healthy twin") else "left")
    for result in results:
        found = [f"{f.name} ({f.step})" for f in result.untreated.report.findings if f.explained_by is None]
        done = [f"{t.change.remedy} at {t.step}: {t.outcome}" for t in result.treated.report.treatments]
        accuracies = [f"{100 * o.accuracy:.1f} %" for o in (result.untreated, result.treated, result.twin)]
        shown.add_row(result.case.name, "\n".join(found) or "nothing", "\n".join(done) or "nothing", *accuracies)
    return shown
