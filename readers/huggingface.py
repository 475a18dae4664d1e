"""Hugging Face's ``trainer_state.json``: the file itself, a checkpoint, or an output directory with checkpoints."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.cutoff import before_the_cut
from trainmedic.readers.jsonlog import line_of_step
from trainmedic.readers.names import evaluation_sets
from trainmedic.readers.reader import Claim, Options, Reader

STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
NAMES = {"loss": "train/loss", "grad_norm": "gradient/norm", "learning_rate": "optimizer/learning_rate"}
FACTS = {
    "max_steps": "total_steps",
    "num_train_epochs": "epochs",
    "logging_steps": "logging_steps",
    "eval_steps": "eval_steps",
    "save_steps": "save_steps",
    "train_batch_size": "batch_size",
    "best_metric": "best_metric",
    "best_global_step": "best_step",
}
LARGEST_STEP = 2**53


class TrainerStateReader(Reader):
    name = "trainer_state"
    supports = "Hugging Face trainer_state.json (or a checkpoint or output directory with one)"
    patterns = (STATE,)
    rank = 3

    def declines(self, path: Path, head: bytes) -> str | None:
        if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return "not a JSON object"
        if path.name != STATE and b'"log_history"' not in head:
            return 'a JSON object without "log_history"'
        return None

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        """The state beside the checkpoints is the run's last word; without it the newest checkpoint's is."""
        checkpoints = [name for name in folders if CHECKPOINT.fullmatch(name)]
        with_state = [name for name in checkpoints if (directory / name / STATE).is_file()]
        newest = max(with_state, key=lambda name: int(name.partition("-")[2]), default=None)
        if STATE in files:
            return Claim((STATE,), frozenset({STATE}), frozenset(with_state))
        return Claim((f"{newest}/{STATE}",), frozenset(), frozenset(with_state)) if newest else Claim()

    def line(self, path: Path, history: History, step: int) -> int | None:
        return line_of_step(path, step)

    def read(self, path: Path, options: Options) -> list[History]:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        notes = []
        try:
            state = json.loads(text)
        except RecursionError as error:
            raise UnreadableError("it is nested too deeply") from error
        except json.JSONDecodeError as error:
            state = before_the_cut(text)
            if not isinstance(state, Mapping) or "log_history" not in state:
                raise UnreadableError(f"not valid JSON (cut off?): {error}") from error
            notes.append("the log ends in the middle of a record")
        rows = state.get("log_history") if isinstance(state, Mapping) else None
        if not isinstance(rows, list):
            raise UnreadableError('no list "log_history" in it')
        history = History()
        history.facts.update(tool="huggingface", time="step", notes=notes)
        history.facts.update({ours: state[theirs] for theirs, ours in FACTS.items() if _plain(state.get(theirs))})
        _fill(history, [row for row in rows if isinstance(row, Mapping)])
        if notes and not history.names():
            raise UnreadableError("not valid JSON: cut off before its first number")
        return [history]


def _fill(history: History, rows: list[Mapping[str, Any]]) -> None:
    sets = evaluation_sets(key for row in rows for key in row)
    series: dict[str, tuple[list[int], list[float]]] = {}
    names: dict[str, str] = {}
    restarts: list[dict[str, int]] = []
    step = 0
    for place, row in enumerate(rows):
        before, step = step, _step(row.get("step"), step)
        if step < before:
            restarts.append({"row": place, "from": before, "to": step})
        numbers = {key: number for key, value in row.items() if (number := _number(value)) is not None}
        if "train_runtime" in row:  # the last row sums the run up; its train_loss is a mean over all of it
            history.facts["summary"] = {key: number for key, number in numbers.items() if key not in ("step", "epoch")}
            continue
        for key, number in numbers.items():
            if key != "step":
                names[series_name(key, sets)] = key
                steps, values = series.setdefault(series_name(key, sets), ([], []))
                steps.append(step)
                values.append(number)
    for name, (steps, values) in series.items():
        history.add_series(name, steps, values)
    history.facts["names"] = {name: key for name, key in names.items() if name != key}
    if restarts:
        history.facts["restarts"] = restarts[:1_000]


def series_name(key: str, sets: Iterable[str]) -> str:
    """Our name of a value: ``eval_loss`` is ``validation/loss``, ``eval_<set>_loss`` is ``validation/<set>/loss``."""
    if key in NAMES:
        return NAMES[key]
    if not key.startswith("eval_"):
        return key
    metric = key.removeprefix("eval_")
    for name in sets:
        if metric.startswith(f"{name}_"):
            return f"validation/{name}/{metric.removeprefix(f'{name}_')}"
    return f"validation/{metric}"


def _step(value: Any, before: int) -> int:
    number = _number(value)
    return int(number) if number is not None and abs(number) <= LARGEST_STEP else before


def _number(value: Any) -> float | None:
    """The number in a JSON value; strings hold one where a tool wrote NaN as valid JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value) if "_" not in str(value) else None
    except (ValueError, OverflowError):
        return None


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
