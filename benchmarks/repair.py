"""How many sick trainings of the clinic are healed, against controls, and whether any training is harmed.

    python benchmarks/repair.py [NAME ...]            # the tuned half: run what is not cached yet, then print
    python benchmarks/repair.py --list                # each case on a line of its own
    python benchmarks/repair.py --run --shard 1/4     # only run, a quarter of it
    python benchmarks/repair.py --split apart         # the half kept apart, as a whole
    python benchmarks/repair.py --long                # only what treating costs, in runs of 2,000 steps

Each patient trains, per seed, in these arms: untreated; treated with ``fix="safe"`` and ``fix="unsafe"``; untreated
from another seed; with a random act, kept whatever comes of it; with static good defaults (gradients clipped to 1.0, a
cosine schedule); and its healthy twin, which is the ceiling. Compared is the metric of the patient on its validation
data, at the end of the run. Arms that do not run our code are cached under a key of the patient's source, the others
under one of the package's as well: a run that is broken off goes on where it was.
"""

import argparse
import collections
import dataclasses
import json
import logging
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import trainmedic.treating  # noqa: E402 - the clinic lies in this repository, not in a package
from benchmarks.diagnosis import Cache, chosen, code_key, default_cache, tell_missing  # noqa: E402
from tests.patients.patient import SEEDS, SPLITS, Patient  # noqa: E402
from tests.patients.training import Missing, Outcome, Training, train  # noqa: E402
from trainmedic.diagnose import Finding  # noqa: E402
from trainmedic.remedies.choose import Choice  # noqa: E402
from trainmedic.remedies.remedy import pharmacy  # noqa: E402
from trainmedic.remedies.run import Run  # noqa: E402

HEALED = 0.8
"""Share of the gap to the twin that must be closed."""
OURS = ("safe", "unsafe", "random")
LONG = 2_000
"""Steps of a run that counts as long."""
CONTROLS = ("reseeded", "random", "static")
ARMS = ("untreated", *OURS, "reseeded", "static", "twin")
PACKAGE = ("hooks", "diagnose", "remedies", "trainmedic")


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="patients, by their whole name or a part of it")
    parser.add_argument("--split", choices=SPLITS, help="which part of the clinic (default: tuned)")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="only every N-th patient, from the I-th on")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds")
    parser.add_argument("--arms", default=",".join(ARMS), help="which arms, with commas between them")
    parser.add_argument("--sick", action="store_true", help="leave out the healthy ones")
    parser.add_argument("--curable", action="store_true", help="only those whose cure is among the acts")
    parser.add_argument("--long", action="store_true", help="stretch the sick to 2,000 steps, and print compute only")
    parser.add_argument("--run", action="store_true", help="only run and cache; print nothing")
    parser.add_argument("--list", action="store_true", help="print each case; not of the half apart")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where results are kept")
    arguments = parser.parse_args()
    arguments.sickness = False
    torch.set_num_threads(1)
    logging.getLogger("trainmedic").setLevel(logging.ERROR)
    if arguments.split == "apart" and (arguments.names or arguments.list):
        parser.error("the half apart is looked at as a whole")
    patients = [p for p in chosen(arguments, parser) if not (arguments.sick and p.healthy)]
    patients = [p for p in patients if curable(p) or not arguments.curable]
    if arguments.long:
        show_compute(long_runs([p for p in patients if not p.healthy], range(arguments.seeds)))
        return
    arms = [arm for arm in ARMS if arm in arguments.arms.split(",")]
    package_key()  # now: what is edited while this runs is not what is run
    cases = list(run(patients, Cache(arguments.cache), range(arguments.seeds), arms))
    if arguments.run:
        return
    if arguments.list:
        for case in cases:
            show_case(case, arms)
    show(cases, arms)


def curable(patient: Patient) -> bool:
    """Whether a cure of the patient is an act that is written."""
    return bool(set(patient.cures) & {remedy.name for remedy in pharmacy()})


# -- running -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How an arm ended. ``trial_steps``: steps of trials beside the run's own; ``done``: (act, outcome, how, step)."""

    score: float
    steps: int
    trial_steps: float = 0.0
    done: tuple[tuple[str, str, str, int], ...] = ()


@dataclass(frozen=True)
class Case:
    """One patient from one seed, in every arm."""

    patient: Patient
    seed: int
    arms: dict[str, Ended]

    def gain(self, arm: str) -> float:
        """By how much better than untreated, whichever way the metric goes."""
        sign = 1 if self.patient.metric.mode == "max" else -1
        return sign * (self.arms[arm].score - self.arms["untreated"].score)

    def healed(self, arm: str) -> bool:
        return self.gain(arm) >= HEALED * self.gain("twin")

    @property
    def extra(self) -> float:
        """Steps of the run treated with ``unsafe``, with those of its trials, over the untreated run's."""
        treated = self.arms["unsafe"]
        return (treated.steps + treated.trial_steps) / max(self.arms["untreated"].steps, 1)


def run(patients: Sequence[Patient], cache: Cache, seeds: Iterable[int], arms: Sequence[str]) -> Iterator[Case]:
    """Every patient from every seed; those whose data is not here are named and left out."""
    wanted = [(patient, seed) for patient in patients for seed in seeds]
    missing: dict[str, list[str]] = collections.defaultdict(list)
    for patient, seed in track(wanted, "training", console=Console(stderr=True)):
        used = [arm for arm in arms if not (patient.healthy and arm in ("twin", *CONTROLS))]
        try:
            yield Case(patient, seed, {arm: ended(patient, seed, arm, cache) for arm in used})
        except Missing as error:
            missing[str(error)].append(patient.name)
    tell_missing(missing)


def ended(patient: Patient, seed: int, arm: str, cache: Cache) -> Ended:
    """An arm's end: from the cache, or trained now."""
    if arm in OURS:
        return _ours(patient, seed, arm, cache)
    trained: dict[str, Callable[[], Outcome]] = {
        "bare": lambda: patient.run(seed=seed, watched=False),
        "twin": lambda: patient.run(sick=False, seed=seed, watched=False),
        "reseeded": lambda: patient.run(seed=seed + 100, watched=False),
        "static": lambda: train(with_defaults(patient.build(seed=seed)), watched=False),
    }
    name = "bare" if arm == "untreated" else arm
    outcome, _ = cache.get(patient, seed, name, trained[name])
    return Ended(outcome.score, outcome.steps)


def _ours(patient: Patient, seed: int, arm: str, cache: Cache) -> Ended:
    home = cache.home.parent / "repair" / package_key() / patient.name
    path = home / f"{arm}-{seed}-{code_key(patient, watched=False)}.json"
    if not path.exists():
        result = treated(patient, seed, arm)
        home.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")
        part.replace(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    return Ended(**{**content, "done": tuple(map(tuple, content["done"]))})


def treated(patient: Patient, seed: int, arm: str) -> Ended:
    """Train it under the medic, which may treat it."""
    outcome = with_random_act(patient, seed) if arm == "random" else patient.run(seed=seed, fix=arm)
    report = outcome.report
    done = tuple((t.change.remedy, t.outcome, t.trial, t.step) for t in report.treatments)
    return Ended(outcome.score, outcome.steps, report.cost.get("trial_steps", 0.0), done)


def package_key(_known: list[str] = []) -> str:  # noqa: B006 - one per run
    """A hash of the code that treats."""
    if not _known:
        files = [path for folder in PACKAGE for path in sorted((ROOT / folder).rglob("*.py"))]
        import hashlib

        _known.append(hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16])
    return _known[0]


def long_runs(patients: Sequence[Patient], seeds: Iterable[int]) -> Iterator[tuple[str, float]]:
    """Steps of treated runs with those of their trials, over those of untreated ones; where anything was tried."""
    for patient, seed in track([(p, s) for p in patients for s in seeds], "training", console=Console(stderr=True)):
        try:
            training = patient.build(seed=seed)
        except Missing:
            continue
        training.epochs = max(training.epochs, math.ceil(LONG * training.epochs / max(training.steps, 1)))
        outcome = train(training, fix="unsafe")
        if outcome.report.treatments:
            extra = outcome.report.cost.get("trial_steps", 0.0)
            yield patient.name, (outcome.steps + extra) / max(training.steps, outcome.steps)


# -- controls ----------------------------------------------------------------------------------------------------------


def with_defaults(training: Training) -> Training:
    """Static good defaults: gradients clipped to a norm of 1, and a cosine schedule over the run."""
    optimizers = training.optimizer if isinstance(training.optimizer, list) else [training.optimizer]

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)

    for optimizer in optimizers:
        optimizer.register_step_pre_hook(clip)
    if len(optimizers) == 1 and training.steps > 0:
        training.scheduled(torch.optim.lr_scheduler.CosineAnnealingLR, training.steps)
    return training


def with_random_act(patient: Patient, seed: int) -> Outcome:
    """When anything is found, one act drawn from all that could be made; it is kept."""
    drawn = random.Random(f"{patient.name} {seed}")

    def choose(finding: Finding, run: Run, **_: Any) -> Choice:
        acts = [remedy for remedy in pharmacy() if not remedy.ends_the_run]
        drawn.shuffle(acts)
        for act in acts:
            illness = drawn.choice(act.treats)
            try:
                change = act().propose(finding.model_copy(update={"name": illness}), run)
            except Exception:  # it cannot be made here
                continue
            if change is not None:
                return Choice([(act(), change)], [])
        return Choice([], [])

    never = {"trial_budget": 0.0, "trial_budget_failing": 0.0, "trial_steps": 1_000_000, "max_treatments": 1}
    known, window = trainmedic.treating.choose, trainmedic.treating.Treating._window
    try:
        trainmedic.treating.choose = choose  # type: ignore[assignment]
        trainmedic.treating.Treating._window = lambda self: 1_000_000  # type: ignore[method-assign]
        return patient.run(seed=seed, fix="unsafe", settings=never)
    finally:
        trainmedic.treating.choose = known
        trainmedic.treating.Treating._window = window  # type: ignore[method-assign]


# -- printing ----------------------------------------------------------------------------------------------------------


def noise(case: Case, cases: Sequence[Case]) -> float:
    """What does not count as a difference: the metric's own margin, or twice the spread of untreated runs."""
    scores = [c.arms["untreated"].score for c in cases if c.patient.name == case.patient.name]
    return max(case.patient.metric.margin, 2 * statistics.pstdev(scores))


def harmed(case: Case, arm: str, cases: Sequence[Case]) -> bool:
    """Whether an arm ended worse than untreated by more than noise."""
    return arm in case.arms and case.gain(arm) < -noise(case, cases)


def show_case(case: Case, arms: Sequence[str]) -> None:
    """One case on a line."""
    scores = " ".join(f"{arm} {case.arms[arm].score:.3f}" for arm in arms if arm in case.arms)
    done = case.arms["unsafe"].done if "unsafe" in case.arms else ()
    acts = "; ".join(f"{act} {outcome} ({how}) at {step}" for act, outcome, how, step in done)
    compared = not case.patient.healthy and {"unsafe", "twin"} <= case.arms.keys()
    mark = ("healed " if case.healed("unsafe") else "NOT HEALED ") if compared else ""
    mark += "" if curable(case.patient) or case.patient.healthy else "(no act cures it) "
    print(
        f"{case.patient.name:<32}{case.seed} {case.patient.illness or '-':<6}{mark}{scores} | {acts or 'nothing done'}"
    )


def show(cases: Sequence[Case], arms: Sequence[str]) -> None:
    """The table: what each arm healed and harmed, what it cost, how trials ended."""
    sick = [case for case in cases if not case.patient.healthy]
    well = [case for case in cases if case.patient.healthy]
    cured = [case for case in sick if curable(case.patient)]
    print(f"\n{len(sick)} sick runs, of which {len(cured)} have a cure among the acts; {len(well)} healthy runs")
    print(f"{'arm':<12}{'healed, of the curable':>24}{'of all sick':>13}{'sick harmed':>13}{'healthy harmed':>16}")
    for arm in arms:
        if arm in ("untreated", "twin"):
            continue
        cells = (
            _share(sum(case.healed(arm) for case in cured), len(cured)) if "twin" in arms else "-",
            _share(sum(case.healed(arm) for case in sick), len(sick)) if "twin" in arms else "-",
            _share(sum(harmed(case, arm, cases) for case in sick), len(sick)),
            _share(sum(harmed(case, arm, cases) for case in well), len(well)) if arm in ("safe", "unsafe") else "-",
        )
        print(f"{arm:<12}{cells[0]:>24}{cells[1]:>13}{cells[2]:>13}{cells[3]:>16}")
    if "unsafe" not in arms:
        return
    treated_well = [case for case in well if case.arms["unsafe"].done]
    print(f"\nhealthy runs in which anything was tried: {len(treated_well)} of {len(well)}")
    extra = sorted(case.extra for case in sick if case.arms["unsafe"].done)
    if extra:
        p90 = extra[min(len(extra) - 1, int(0.9 * len(extra)))]
        print(f"compute of treated runs over untreated ones: median {statistics.median(extra):.2f}, p90 {p90:.2f}")
    ends = collections.Counter((how, end) for case in sick for _, end, how, _ in case.arms["unsafe"].done)
    for (how, end), count in sorted(ends.items()):
        print(f"{how} trials {end}: {count}")


def show_compute(runs: Iterable[tuple[str, float]]) -> None:
    """Median and p90 of the compute of treated runs over untreated ones."""
    shares = sorted(share for _, share in runs)
    if not shares:
        print("nothing was tried in any run")
        return
    p90 = shares[min(len(shares) - 1, int(0.9 * len(shares)))]
    print(f"{len(shares)} treated runs of {LONG:,} steps or more, compute over that of untreated ones: ", end="")
    print(f"median {statistics.median(shares):.3f}, p90 {p90:.3f}, most {shares[-1]:.3f}")


def _share(count: int, of: int) -> str:
    return f"{count / of:.2f} ({count}/{of})" if of else "-"


if __name__ == "__main__":
    main()
