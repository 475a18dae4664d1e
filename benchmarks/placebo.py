"""How often trials keep a change that does nothing: it should be one in twenty at most.

    python benchmarks/placebo.py [NAME ...]     # the tuned half of the clinic, sick and healthy
    python benchmarks/placebo.py --trials 3     # so many trials in each training, controlled and sequential ones

In each training a finding is put before the medic at evenly spread steps, and the one candidate is a placebo: every
weight is multiplied by 1 + 1e-4, which is far below what a step does and yet parts the trajectories of a chaotic run.
The medic is told of a run long enough for a controlled trial; for sequential ones the budget of trials is zero.
"""

import argparse
import collections
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import trainmedic.treating  # noqa: E402 - the clinic lies in this repository, not in a package
from benchmarks.diagnosis import chosen, default_cache  # noqa: E402
from tests.patients.patient import SPLITS, Patient  # noqa: E402
from tests.patients.training import Missing, train  # noqa: E402
from trainmedic.diagnose import Finding, Severity  # noqa: E402
from trainmedic.diagnose.judge import catalogue  # noqa: E402
from trainmedic.medic import Medic  # noqa: E402
from trainmedic.remedies.change import Change, Safety, Treatment  # noqa: E402
from trainmedic.remedies.choose import Choice  # noqa: E402
from trainmedic.remedies.remedy import Remedy, Undo  # noqa: E402
from trainmedic.remedies.run import Run  # noqa: E402
from trainmedic.treating import Pending  # noqa: E402

FACTOR = 1 + 1e-4
KINDS = ("controlled", "sequential")


class Placebo(Remedy):
    """Changes nothing that matters.

    Safety: safe.
    """

    treats: ClassVar[tuple[str, ...]] = ("plateau",)
    safety: ClassVar[Safety] = Safety.SAFE

    def propose(self, finding: Finding, run: Run) -> Change | None:
        return Change(remedy=self.name, summary="nothing done", code="pass")

    def apply(self, change: Change, run: Run) -> Undo:
        before = [(parameter, parameter.detach().clone()) for _, parameter in run.parameters()]
        with torch.no_grad():
            for parameter, _ in before:
                parameter.mul_(FACTOR)

        def undo() -> None:
            with torch.no_grad():
                for parameter, kept in before:
                    parameter.copy_(kept)

        return undo


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="patients, by their whole name or a part of it")
    parser.add_argument("--split", choices=SPLITS[:1], help="the tuned half only: placebos are no evaluation")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="only every N-th patient, from the I-th on")
    parser.add_argument("--trials", type=int, default=2, help="trials in each training")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    arguments = parser.parse_args()
    arguments.sickness, arguments.cache = False, default_cache()
    torch.set_num_threads(1)
    logging.getLogger("trainmedic").setLevel(logging.ERROR)
    patients = chosen(arguments, parser)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for patient in track(patients, "training", console=Console(stderr=True)):
        for kind in KINDS:
            for treatment in tried(patient, kind, arguments.trials, arguments.seed):
                counts[treatment.trial, treatment.outcome] += 1
                if treatment.outcome == "kept":
                    print(f"{patient.name}: kept at step {treatment.step} ({treatment.trial}): {treatment.reason}")
    for kind in KINDS:
        decided = sum(counts[kind, outcome] for outcome in ("kept", "undone"))
        share = f"{counts[kind, 'kept'] / decided:.3f}" if decided else "-"
        print(f"{kind}: {counts[kind, 'kept']} of {decided} placebos kept, {share}")


def tried(patient: Patient, kind: str, trials: int, seed: int) -> Iterator[Treatment]:
    """The trials of placebos in one training that came to an end."""
    known, judged = trainmedic.treating.choose, Medic._judge
    settings = {
        "ignore": [rule.code for rule in catalogue()],
        "cooldown": 0,
        "max_treatments": 10_000,
        "trial_budget": 1.0 if kind == "controlled" else 0.0,
        "trial_steps": 40,
    }
    try:
        training = patient.build(seed=seed)
    except Missing:
        return
    moments = {training.steps * (i + 1) // (trials + 1) for i in range(trials)}

    def judge(medic: Medic) -> Any:
        step = medic._probe.step
        treating = medic._treating
        if any(moment <= step for moment in moments) and not treating._on_trial and not treating.wants_a_safe_point:
            moments.difference_update({moment for moment in moments if moment <= step})
            act, ill = Placebo(), finding(step)
            change = act.propose(ill, treating.run)
            assert change is not None
            treating._pending = Pending(ill, [(act, change)])
        return judged(medic)

    try:
        trainmedic.treating.choose = lambda *_, **__: Choice([], [])  # nothing but the placebo
        Medic._judge = judge  # type: ignore[method-assign]
        length = {"total_steps": 20 * training.steps} if kind == "controlled" else {}
        report = train(training, fix="unsafe", settings=settings, **length).report
    finally:
        trainmedic.treating.choose, Medic._judge = known, judged  # type: ignore[method-assign]
    yield from report.treatments


def finding(step: int) -> Finding:
    """What is put before the medic: a warning, seen in the run as it is."""
    return Finding(
        id="f0",
        code="TM404",
        name="plateau",
        severity=Severity.WARNING,
        step=max(step - 20, 0),
        detected_at=step,
        message="put before the medic by the benchmark",
    )


if __name__ == "__main__":
    main()
