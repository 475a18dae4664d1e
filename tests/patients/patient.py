"""A ``Patient``: one small real training with its label, and the register that the modules of both halves fill.

A patient is a function that sets a training up, with its fault or (the healthy twin) without:

    @sick("TM301", "dead rectifiers", family="mlp", data="digits", cures=["reinitialize"])
    def biases_at_minus_three(sick: bool) -> Training: ...

The split is the folder that the module lies in. Labels are the truth as people see it, whatever the rules say: they
were given before the rules were written, and are changed only where a training turns out to be another than was meant.
Who works on rules looks into ``tuned`` and ``seen`` only; ``apart`` is judged as a whole, by
``benchmarks/diagnosis.py``. When its evaluations are used up and it is wanted to learn from, it goes into ``seen``, and
another half is written by people who have not read the rules.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tests.patients.training import ACCURACY, Metric, Outcome, Training, seeded, train

SPLITS = ("tuned", "seen", "apart")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Patient:
    """One training and what is known about it."""

    name: str
    family: str
    """Its architecture."""
    data: str
    split: str
    about: str
    """The fault in a few words; of a healthy run what it could be mistaken for."""
    setup: Callable[[bool], Training]
    """Called with whether the fault is in; a healthy patient ignores that."""
    illness: str | None = None
    """The code of the root; ``None`` for healthy ones."""
    also: frozenset[str] = frozenset()
    """Codes that name the root as rightly as ``illness``: the same fault seen from another side."""
    symptoms: frozenset[str] = frozenset()
    """Codes that are true of the run besides, and may be found under the root."""
    metric: Metric = ACCURACY
    cures: tuple[str, ...] = ()
    """Acts that could cure it; none where only people can."""
    onset: float | None = 0.0
    """From which share of the run on the fault can be seen; ``None`` where it develops by itself."""
    module: str = ""

    @property
    def healthy(self) -> bool:
        return self.illness is None

    def build(self, *, sick: bool = True, seed: int = 0) -> Training:
        """The training, ready to go: model, optimizer, data, loss and loop. The same up to the fault for each seed."""
        seeded(seed)
        training = self.setup(sick)
        training.metric = self.metric
        return training

    def run(self, *, sick: bool = True, seed: int = 0, watched: bool = True, **watch: Any) -> Outcome:
        """Train it; ``watch`` holds keywords of ``trainmedic.watch``, such as ``fix``."""
        return train(self.build(sick=sick, seed=seed), watched=watched, **watch)


_register: dict[str, Patient] = {}
_Setup = Callable[..., Training]


def sick(
    code: str,
    about: str,
    *,
    family: str,
    data: str,
    metric: Metric = ACCURACY,
    also: Iterable[str] = (),
    symptoms: Iterable[str] = (),
    cures: Iterable[str] = (),
    onset: float | None = 0.0,
) -> Callable[[_Setup], _Setup]:
    """Register a sick patient; the function is called with whether the fault is in."""
    names = frozenset(also)
    rest = frozenset(symptoms) - names - {code}
    labels = {"illness": code, "also": names, "symptoms": rest, "cures": tuple(cures)}
    return lambda setup: _registered(
        setup, setup, about=about, family=family, data=data, metric=metric, onset=onset, **labels
    )


def healthy(about: str, *, family: str, data: str, metric: Metric = ACCURACY) -> Callable[[_Setup], _Setup]:
    """Register a healthy patient; the function takes no argument."""
    return lambda setup: _registered(setup, lambda _: setup(), about=about, family=family, data=data, metric=metric)


def _registered(function: _Setup, setup: Callable[[bool], Training], **labels: Any) -> _Setup:
    module = function.__module__
    split: Literal["tuned", "seen", "apart"] = module.split(".")[-2]  # type: ignore[assignment]
    name = f"{split}-{function.__name__.replace('_', '-')}"
    if name in _register and _register[name].module != module:
        raise ValueError(f"two patients are called {name}")
    _register[name] = Patient(name=name, split=split, setup=setup, module=module, **labels)
    return function


@cache
def clinic() -> dict[str, Patient]:
    """All patients by name: the folders of all splits are walked."""
    for split in SPLITS:
        for found in pkgutil.iter_modules([str(Path(__file__).parent / split)]):
            importlib.import_module(f"tests.patients.{split}.{found.name}")
    return dict(
        sorted(
            _register.items(), key=lambda item: (SPLITS.index(item[1].split), item[1].healthy, item[1].illness or "")
        )
    )
