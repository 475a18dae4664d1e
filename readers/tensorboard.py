"""TensorBoard event files: all files of one run, with the sub-runs that TensorBoard and Keras put beside them."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import History
from trainmedic.readers.crc32c import Integers
from trainmedic.readers.events import HEADER, Log, Run, is_sound
from trainmedic.readers.filling import fill
from trainmedic.readers.histograms import add_to
from trainmedic.readers.names import TRAIN, VALIDATION, canonical
from trainmedic.readers.reader import Claim, Options, Reader
from trainmedic.readers.reader import head as first_bytes

EVENTS = re.compile(r".*\.tfevents\..*|events\.out\.tfevents.*")
ROLES = {**dict.fromkeys(TRAIN, "train"), **dict.fromkeys(VALIDATION, "validation"), "test": "test"}
HPARAMS = b"_hparams_/"
MOST_RESTARTS = 1_000


class TensorBoardReader(Reader):
    name = "tensorboard"
    supports = "TensorBoard event files"
    patterns = ("*.tfevents.*", "events.out.tfevents*")
    rank = 2

    def declines(self, path: Path, head: bytes) -> str | None:
        if len(head) < HEADER.size + 4:
            return "too short for a record"
        if not is_sound(head):
            return "its first record has no sound length"
        if EVENTS.fullmatch(path.name) or b"brain.Event:" in head[:64]:
            return None
        return "its records are no events"

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        """One run: the event files of the directory, and the folders below it that belong to the same training."""
        events = frozenset(name for name in files if EVENTS.fullmatch(name))
        mine = sorted(name for name in events if self.declines(directory / name, first_bytes(directory / name)) is None)
        inner = _inner(directory, bool(mine), folders)
        if inner or len(mine) > 1:
            return Claim((".",), events, frozenset(inner))
        return Claim(tuple(mine), events)

    def file(self, path: Path) -> Path:
        """The first event file of a run."""
        return next((file for file in sorted(path.glob("**/*.tfevents.*"))), path) if path.is_dir() else path

    def read(self, path: Path, options: Options) -> list[History]:
        """One history of a file, or of a directory with all that belongs to the training in it."""
        directory = path if path.is_dir() else path.parent
        role = ROLES.get(directory.name.lower())
        files, inner = [path], dict[str, Affixes | None]()
        if path.is_dir():
            files = [path / name for name in sorted(_events(path))]
            inner = _inner(path, bool(files), frozenset(entry.name for entry in path.iterdir() if entry.is_dir()))
        runs = {(f"{role}/" if role else "", ""): Run.of(files, options.verify)} if files else {}
        for folder, affixes in inner.items():
            if affixes is not None:
                parts = [path / folder / name for name in sorted(_events(path / folder))]
                runs[affixes] = Run.of(parts, options.verify)
        return [_history(runs, options)]


def _events(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir() if EVENTS.fullmatch(entry.name) and entry.is_file()]
    except OSError:
        return []


Affixes = tuple[str, str]
"""What is put before and behind the tags of a sub-run."""


def _inner(directory: Path, events: bool, folders: frozenset[str]) -> dict[str, Affixes | None]:
    """The folders that hold a part of the training in ``directory``; ``None`` for one whose numbers are no series.

    Keras writes ``train`` and ``validation``; ``add_scalars("loss", {"a": ...})`` writes ``loss_a`` with the tag
    ``loss`` in it; ``add_hparams`` a folder of its own.
    """
    inner: dict[str, Affixes | None] = {}
    for folder in sorted(folders):
        if folder.lower() not in ROLES and not events:
            continue
        names = sorted(_events(directory / folder))
        if not names:
            continue
        begin = first_bytes(directory / folder / names[0])
        if folder.lower() in ROLES:
            inner[folder] = (f"{ROLES[folder.lower()]}/", "")
        elif HPARAMS in begin:
            inner[folder] = None
        else:
            written = [tag for tag in _first_tags(begin) if folder.startswith(f"{tag.replace('/', '_')}_")]
            if written:
                inner[folder] = ("", f"/{folder[len(written[0]) + 1 :]}")
    return inner


def _first_tags(begin: bytes) -> list[str]:
    """The tags in the first bytes of an event file."""
    log = Log(verify=False)
    log.take(begin)
    return log.run().names


def _history(runs: Mapping[Affixes, Run], options: Options) -> History:
    history = History()
    series: dict[str, tuple[Integers, NDArray[np.float64]]] = {}
    times: list[NDArray[np.float64]] = []
    own: dict[str, str] = {}
    for affixes, run in runs.items():
        for tag, steps, wall_times, values in run.scalars():
            name = _name(tag, *affixes)
            series[name if name not in series else tag] = steps, values
            own[name] = tag
            times.append(wall_times[[0, -1]])
    known = canonical(list(series), {name: len(steps) for name, (steps, _) in series.items()})
    fill(history, [(name, steps, values) for name, (steps, values) in series.items()], known)
    epochs = bool(own) and all(tag.startswith(("epoch_", "evaluation_")) for tag in own.values())
    history.facts["time"] = "epoch" if epochs else "step"
    history.facts["names"] = {ours: own.get(name, name) for name, ours in known.items() if ours in history}
    if times:
        history.facts["started"], history.facts["ended"] = float(np.min(times)), float(np.max(times))
    restarts = _restarts(steps for steps, _ in series.values())
    if restarts:
        history.facts["restarts"] = restarts
    notes = [note for run in runs.values() for note in run.notes]
    for run in runs.values():
        notes += add_to(history, run.names, run.histograms)
    texts = {_name(tag, *affixes): text for affixes, run in runs.items() for tag, text in run.texts.items()}
    if texts:
        history.facts["texts"] = texts
    if restarts:
        notes.append(f"the step falls back {len(restarts):,} times, first from {restarts[0]['from']:,}")
    if not options.verify:
        notes.append("checksums of the records were not verified")
    history.facts["notes"] = notes
    return history


def _name(tag: str, before: str, behind: str) -> str:
    """A tag with what its sub-run says; Keras' ``epoch_`` says only what the steps count."""
    plain = tag.removeprefix("epoch_")
    role = before.rstrip("/")
    told = re.match(r"[A-Za-z]+(?=[/_.-])", plain)
    if told and role and ROLES.get(told[0].lower()) == role:
        return plain
    return f"{before}{plain}{behind}"


def _restarts(all_steps: Iterable[Integers]) -> list[dict[str, int]]:
    """Where the step falls back, each place once however many series fall there."""
    found: dict[tuple[int, int], None] = {}
    for steps in all_steps:
        for row in np.flatnonzero(np.diff(steps) < 0)[:MOST_RESTARTS].tolist():
            found[int(steps[row]), int(steps[row + 1])] = None
    return [{"from": start, "to": to} for start, to in list(found)[:MOST_RESTARTS]]
