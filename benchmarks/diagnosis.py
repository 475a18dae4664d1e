"""How well the rules judge the clinic: real small trainings, sick and healthy, three seeds each.

    python benchmarks/diagnosis.py [NAME ...]            # the tuned half: train what is not recorded yet, then judge
    python benchmarks/diagnosis.py --list                # each run of the tuned half on a line of its own
    python benchmarks/diagnosis.py --split seen          # what was the half apart before, and is looked at since
    python benchmarks/diagnosis.py --sickness            # all: is each sick one worse than its healthy twin?
    python benchmarks/diagnosis.py --record --shard 1/4  # only train and record, a quarter of it
    python benchmarks/diagnosis.py --split apart         # an evaluation: logged, three at most

Trainings run with ``fix="off"`` and no rules, so they do not depend on them: each history is recorded once, in a cache
outside the repository, under a key of the patient's and the probe's source, and judged as often as the rules change. A
run that is broken off goes on where it was. Each history is judged at every twentieth of its run, as the medic does
live, so that a false alarm that was taken back counts too.
"""

import argparse
import collections
import datetime
import functools
import hashlib
import json
import logging
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import trainmedic  # noqa: E402 - the clinic lies in this repository, not in a package
from tests.patients.illnesses import ILLNESSES  # noqa: E402
from tests.patients.patient import SEEDS, SPLITS, Patient, clinic  # noqa: E402
from tests.patients.training import Missing, Outcome  # noqa: E402
from trainmedic.diagnose import Finding  # noqa: E402
from trainmedic.diagnose.judge import catalogue  # noqa: E402
from trainmedic.history import History  # noqa: E402

LOG = ROOT / "benchmarks" / "diagnosis.log"
EVALUATIONS = 3
NEW_HALF = "## "
"""A line of the log that begins so says that another half apart begins there."""
CUTS = 20
"""A history is judged at so many points of its run."""
RECORDERS = ("hooks", *(f"trainmedic/{name}.py" for name in ("history", "logged", "batches", "medic", "watching")))
"""The code that a recorded history depends on, besides the patient's own."""


def main() -> None:
    """Read the command line, record, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="patients, by their whole name or a part of it")
    parser.add_argument("--split", choices=SPLITS, help="which part (default: tuned; with --sickness all)")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="only every N-th patient, from the I-th on")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds")
    parser.add_argument("--sickness", action="store_true", help="compare with the healthy twins; judge nothing")
    parser.add_argument("--record", action="store_true", help="train and record; judge nothing")
    parser.add_argument("--list", action="store_true", help="print each run; not of the half apart")
    parser.add_argument("--stale", action="store_true", help="judge what is recorded, by whatever code it was")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where recorded trainings are kept")
    parser.add_argument("--override", metavar="REASON", help="evaluate the half apart once more than is allowed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("trainmedic").setLevel(logging.ERROR)
    patients = chosen(arguments, parser)
    cache = Cache(arguments.cache, arguments.stale)
    for patient in patients:  # now: what is edited while this runs is not what is run
        code_key(patient, watched=True), code_key(patient, watched=False)
    seeds = tuple(range(arguments.seeds))
    if arguments.sickness:
        sickness(patients, cache, seeds)
        return
    if arguments.stale and arguments.split == "apart":
        parser.error("the half apart is judged as today's code records it")
    if not arguments.record and any(patient.split == "apart" for patient in patients):
        forbid_early_looks(arguments, parser)
    recorded = list(record(patients, cache, seeds))
    if arguments.record:
        print(f"{len(recorded)} trainings are recorded in {cache.home}")
        return
    judged = [Judged(run, judge(run.history)) for run in track(recorded, "judging", console=Console(stderr=True))]
    if arguments.list:
        show_each(judged)
    score = show(judged, arguments.split or "tuned")
    if arguments.split == "apart":
        note(score, arguments.override)


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainmedic" / "clinic"


def chosen(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Patient]:
    """The patients that the command line asks for."""
    splits = (arguments.split,) if arguments.split else SPLITS if arguments.sickness else ("tuned",)
    first, _, every = arguments.shard.partition("/")
    if not (first.isdecimal() and every.isdecimal() and 1 <= int(first) <= int(every)):
        parser.error(f"--shard must be I/N with I from 1 to N, but got {arguments.shard!r}")
    known = [patient for patient in clinic().values() if patient.split in splits]
    for name in arguments.names:
        if not any(name in patient.name for patient in known):
            parser.error(f"no patient of {' or '.join(splits)} has {name!r} in its name")
    picked = [p for p in known if not arguments.names or any(name in p.name for name in arguments.names)]
    return picked[int(first) - 1 :: int(every)]


def forbid_early_looks(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """The half apart is judged as a whole, three times at most, and never case by case."""
    if arguments.names or arguments.list or arguments.shard != "1/1" or arguments.seeds != len(SEEDS):
        parser.error("the half apart is judged as a whole: a case looked at singly would count as tuned")
    done = len(evaluations())
    if done >= EVALUATIONS and not arguments.override:
        parser.error(f"the half apart was evaluated {done} times (see {LOG.name}); --override REASON does it again")


# -- recording ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cache:
    """Results of trainings in files, each under a key of the code that it depends on."""

    home: Path
    stale: bool = False
    """Whether what older code has left is good enough."""

    def get(self, patient: Patient, seed: int, arm: str, train: Callable[[], Outcome]) -> tuple[Outcome, Path]:
        """The outcome and the path of the history (of watched arms); trained now unless it was before."""
        folder = self.home / patient.name
        path = folder / f"{arm}-{seed}-{code_key(patient, watched=arm == 'watched')}.json"
        if self.stale and not path.exists():
            path = max(folder.glob(f"{arm}-{seed}-*.json"), key=lambda left: left.stat().st_mtime, default=path)
        if not path.exists():
            outcome = train()
            folder.mkdir(parents=True, exist_ok=True)
            for outdated in folder.glob(f"{arm}-{seed}-*"):
                outdated.unlink(missing_ok=True)
            if outcome.report is not None:
                outcome.report.history.save(path.with_suffix(".npz"))
            numbers = {name: value for name, value in vars(outcome).items() if name != "report"}
            part = path.with_suffix(".part")
            part.write_text(json.dumps(numbers), encoding="utf-8")
            part.replace(path)
        return Outcome(**json.loads(path.read_text(encoding="utf-8"))), path.with_suffix(".npz")


def code_key(patient: Patient, *, watched: bool) -> str:
    """A hash of what decides the training: the clinic's files that it is made of, and, if watched, the probe."""
    home = ROOT / "tests" / "patients"
    own = home.joinpath(*patient.module.split(".")[2:]).with_suffix(".py")
    shared = [path for path in home.glob("*.py") if path.stem not in ("illnesses", "patient", "test_patients")]
    files = [*shared, *_imported(own, home / patient.split)]
    for part in RECORDERS if watched else ():
        files += sorted((ROOT / part).glob("*.py")) or [ROOT / part]
    return _hash(tuple(sorted(set(files))))


@functools.cache
def _imported(module: Path, folder: Path) -> frozenset[Path]:
    """The module and those of its folder that it imports, and that these import."""
    names = re.findall(rf"^from tests\.patients\.{folder.name}\.(\w+) import", module.read_text(), re.MULTILINE)
    return frozenset({module}).union(*(_imported(folder / f"{name}.py", folder) for name in names))


def _hash(files: tuple[Path, ...], _known: dict[tuple[Path, ...], str] = {}) -> str:  # noqa: B006 - one per run
    if files not in _known:
        content = b"".join(path.read_bytes() for path in files) + torch.__version__.encode()
        _known[files] = hashlib.sha256(content).hexdigest()[:16]
    return _known[files]


@dataclass(frozen=True)
class Run:
    """One recorded training."""

    patient: Patient
    seed: int
    outcome: Outcome
    history: Path


def record(patients: Iterable[Patient], cache: Cache, seeds: Iterable[int]) -> Iterator[Run]:
    """Every patient's watched trainings; those whose data is not here are named and left out."""
    wanted = [(patient, seed) for patient in patients for seed in seeds]
    missing: dict[str, list[str]] = collections.defaultdict(list)
    for patient, seed in track(wanted, "recording", console=Console(stderr=True)):
        watched = partial(patient.run, seed=seed, settings={"ignore": [rule.code for rule in catalogue()]})
        try:
            yield Run(patient, seed, *cache.get(patient, seed, "watched", watched))
        except Missing as error:
            missing[str(error)].append(patient.name)
    tell_missing(missing)


def tell_missing(missing: dict[str, list[str]]) -> None:
    for reason, names in missing.items():
        print(f"{len(set(names))} patients left out, {reason}: {', '.join(sorted(set(names)))}")


# -- is the sick one sick? ---------------------------------------------------------------------------------------------


def sickness(patients: Iterable[Patient], cache: Cache, seeds: tuple[int, ...]) -> None:
    """Print each patient's final score against its healthy twin's, or against chance."""
    print(f"{'patient':<34}{'code':<7}{'metric':<28}{'score':>17}{'twin or chance':>17}{'s':>6}  verdict")
    verdicts: collections.Counter[str] = collections.Counter()
    missing: dict[str, list[str]] = collections.defaultdict(list)
    for patient in patients:
        try:
            score = [_bare(patient, cache, seed, sick=True) for seed in seeds]
            other = score if patient.healthy else [_bare(patient, cache, seed, sick=False) for seed in seeds]
        except Missing as error:
            missing[str(error)].append(patient.name)
            continue
        verdict = learns(patient, score) if patient.healthy else shown_sick(patient, score, other)
        verdicts[verdict] += 1
        against = [o.chance for o in other] if patient.healthy else [o.score for o in other]
        slowest = max(o.seconds for o in (*score, *other))
        print(
            f"{patient.name:<34}{patient.illness or '-':<7}{patient.metric.name:<28}"
            f"{_spread([o.score for o in score]):>17}{_spread(against):>17}{slowest:>6.1f}  {verdict}",
            flush=True,
        )
    print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    tell_missing(missing)


def _bare(patient: Patient, cache: Cache, seed: int, *, sick: bool) -> Outcome:
    """An unwatched training: it does not depend on our code."""
    arm = "bare" if sick else "twin"
    return cache.get(patient, seed, arm, lambda: patient.run(sick=sick, seed=seed, watched=False))[0]


def shown_sick(patient: Patient, sick: list[Outcome], twin: list[Outcome]) -> str:
    """Worse than the twin for every seed, and by the metric's margin on average."""
    sign = 1 if patient.metric.mode == "max" else -1
    gaps = [sign * (b.score - a.score) for a, b in zip(sick, twin, strict=True)]
    return "sick" if min(gaps) > 0 and statistics.fmean(gaps) >= patient.metric.margin else "NOT SHOWN SICK"


def learns(patient: Patient, outcomes: list[Outcome]) -> str:
    """Every seed has gone a clear part of the way from chance to perfection."""
    shares = [(o.score - o.chance) / (1 - o.chance) for o in outcomes]
    return "learns" if min(shares) >= patient.metric.learnt else "NOT SHOWN TO LEARN"


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.pstdev(values):.3f}"


# -- judging -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """What the rules say of one run: at its end, and what they said on the way."""

    final: tuple[Finding, ...]
    told: dict[str, tuple[int, str]]
    """By code: the step at which it was told first, and the worst severity it ever had."""
    length: int

    @property
    def primary(self) -> str | None:
        """The code that the report leads with, of at least a warning."""
        return next((f.code for f in self.final if f.severity != "info" and f.explained_by is None), None)


def judge(path: Path) -> Judgement:
    """Judge a recorded history as a whole and at every twentieth of it."""
    history = History.load(path)
    length = history.last_step + 1
    final = trainmedic.examine(history, {})
    told: dict[str, tuple[int, str]] = {}
    for cut in range(CUTS, 0, -1):
        step = length * cut // CUTS
        history.drop_after(step - 1)
        for finding in final if cut == CUTS else trainmedic.examine(history, {}):
            if finding.severity != "info":
                worst = max(told.get(finding.code, (0, "warning"))[1], str(finding.severity), key=_badness)
                told[finding.code] = step, worst
    return Judgement(tuple(final), told, length)


def _badness(severity: str) -> int:
    return ("info", "warning", "error").index(severity)


@dataclass(frozen=True)
class Judged:
    """A run and what the rules say of it."""

    run: Run
    said: Judgement

    @property
    def patient(self) -> Patient:
        return self.run.patient

    @property
    def names(self) -> frozenset[str]:
        """The codes that name the root rightly."""
        return frozenset({self.patient.illness or ""}) | self.patient.also

    @property
    def found(self) -> bool:
        return any(f.code in self.names and f.severity != "info" for f in self.said.final)

    @property
    def right(self) -> bool:
        return self.said.primary in self.names

    @property
    def strays(self) -> set[str]:
        """Codes told of a sick run that are neither its root nor among its symptoms."""
        return {f.code for f in self.said.final if f.severity != "info"} - self.names - self.patient.symptoms

    @property
    def delay(self) -> float | None:
        """Share of the run from the fault's onset to its first right name."""
        steps = [step for code, (step, _) in self.said.told.items() if code in self.names]
        if not self.found or not steps:
            return None
        onset = self.patient.onset
        if onset is None:
            begun = min(f.step for f in self.said.final if f.code in self.names)
        else:
            begun = int(onset * self.said.length)
        return max(0.0, min(steps) - begun) / self.said.length


COLUMNS = {
    "runs": 5,
    "recall": 8,
    "named first": 13,
    "wrong first": 13,
    "stray": 7,
    "error/healthy": 15,
    "warning/healthy": 17,
    "taken back": 12,
    "median delay": 14,
}
"""Of sick runs: found, and leading the report, at the root; leading it wrongly; found though neither root nor symptom.
Of healthy runs: the share whose report holds it, by level, and the share that was told it on the way only."""


def show(judged: list[Judged], split: str) -> str:
    """Print the table by rule; give the score in one line."""
    sick, well = [j for j in judged if not j.patient.healthy], [j for j in judged if j.patient.healthy]
    print(f"\n{split}: {len(sick)} sick runs, {len(well)} healthy ones")
    print(f"{'rule':<31}" + "".join(f"{title:>{width}}" for title, width in COLUMNS.items()))
    for code, name in ILLNESSES.items():
        print(f"{f'{code} {name}':<31}{row(code, sick, well)}")
    print(f"{'all':<31}{row(None, sick, well)}")
    score = summary(sick, well)
    print(f"\n{score}")
    return score


def row(code: str | None, sick: list[Judged], well: list[Judged]) -> str:
    """One rule's cells, or with ``None`` those of all."""
    own = [j for j in sick if code in (None, j.patient.illness)]
    wrong = [j for j in sick if j.said.primary and not j.right and code in (None, j.said.primary)]
    strays = sum(code in j.strays if code else bool(j.strays) for j in sick)
    delays = [j.delay for j in own if j.delay is not None]
    cells = (
        len(own),
        _share(sum(j.found for j in own), len(own)),
        _share(sum(j.right for j in own), len(own)),
        len(wrong),
        strays,
        _share(alarmed(well, "error", code), len(well)),
        _share(alarmed(well, "warning", code), len(well)),
        _share(taken_back(well, code), len(well)),
        f"{statistics.median(delays):.0%}" if delays else "-",
    )
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def alarmed(well: list[Judged], severity: str, code: str | None = None) -> int:
    """Healthy runs in whose report a finding of this severity stands."""
    return sum(any(f.severity == severity and code in (None, f.code) for f in j.said.final) for j in well)


def taken_back(well: list[Judged], code: str | None = None) -> int:
    """Healthy runs that were told something on the way which the report does not hold any more."""
    return sum(
        any(told not in {f.code for f in j.said.final} and code in (None, told) for told in j.said.told) for j in well
    )


def summary(sick: list[Judged], well: list[Judged]) -> str:
    """The score in one line."""
    delays = [j.delay for j in sick if j.delay is not None]
    return (
        f"recall {_share(sum(j.found for j in sick), len(sick))}, "
        f"root named first {_share(sum(j.right for j in sick), len(sick))}, "
        f"of {len(well)} healthy runs {alarmed(well, 'error')} with an error and "
        f"{alarmed(well, 'warning')} with a warning (taken back on the way: {taken_back(well)}), "
        f"median delay {f'{statistics.median(delays):.0%}' if delays else '-'}"
    )


def _share(count: int, of: int) -> str:
    return f"{count / of:.2f}" if of else "-"


def show_each(judged: list[Judged]) -> None:
    """Each run on a line: what it has, what was said first, what else."""
    for j in judged:
        codes = [f"{f.code}{'!' if f.severity == 'error' else ''}" for f in j.said.final if f.severity != "info"]
        verdict = ("well" if not j.said.told else "FALSE ALARM") if j.patient.healthy else (
            "right" if j.right else "found" if j.found else "MISSED"
        )  # fmt: skip
        print(f"{j.patient.name:<34}{j.run.seed:>2} {j.patient.illness or '-':<7}{verdict:<12}{' '.join(codes)}")


# -- the log of evaluations --------------------------------------------------------------------------------------------


def evaluations() -> list[str]:
    """The lines of the log that count: of today's half apart."""
    lines = LOG.read_text(encoding="utf-8").splitlines() if LOG.exists() else []
    since = max((n for n, line in enumerate(lines) if line.startswith(NEW_HALF)), default=-1) + 1
    return [line for line in lines[since:] if line.strip() and not line.startswith("#")]


def note(score: str, override: str | None) -> None:
    """Append an evaluation of the half apart to the log; it is committed by hand."""
    with LOG.open("a", encoding="utf-8") as log:
        why = f" [override: {override}]" if override else ""
        log.write(f"{datetime.date.today().isoformat()} {commit()} apart: {score}{why}\n")
    print(f"appended to {LOG.relative_to(ROOT)}; commit it")


def commit() -> str:
    """The commit that was judged, marked where the tree held changes."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{'+changes' if changed else ''}"


if __name__ == "__main__":
    main()
