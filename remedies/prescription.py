"""``prescription.json``: what was changed in a run and kept, so that a fresh model can be made to match."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainmedic.errors import TrainmedicError, UsageError
from trainmedic.remedies.change import Change, Treatment
from trainmedic.remedies.remedy import Undo, pharmacy

if TYPE_CHECKING:
    import torch

    from trainmedic.remedies.run import Run

VERSION = 1


def write(path: str | os.PathLike[str], treatments: Iterable[Treatment]) -> None:
    """Write the treatments that were kept, whole or not at all."""
    path = Path(path)
    kept = [treatment.model_dump(mode="json") for treatment in treatments if treatment.outcome == "kept"]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part", text=True)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"version": VERSION, "treatments": kept}, file, indent=1, allow_nan=False)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(prescription: str | os.PathLike[str] | Mapping[str, Any]) -> list[Change]:
    """The changes of a prescription (a path, or its content), in order; ``UsageError`` if it is none."""
    source, content = "prescription", prescription
    if not isinstance(prescription, Mapping):
        source = os.fspath(prescription)
        try:
            content = json.loads(Path(prescription).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{source}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{source}: not a prescription: no valid JSON") from error
    if not isinstance(content, Mapping) or content.get("version") != VERSION:
        raise UsageError(f"{source}: not a prescription of version {VERSION}, as trainmedic writes it into a logdir")
    entries = content.get("treatments")
    if not isinstance(entries, list):
        raise UsageError(f"{source}: not a prescription: treatments should be a list")
    try:
        return [Treatment.model_validate(entry).change for entry in entries]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{source}: not a prescription: {where}: {first['msg'].lower()}") from error


def replay(
    model: "torch.nn.Module | Sequence[torch.nn.Module]",
    optimizer: "torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None",
    prescription: str | os.PathLike[str] | Mapping[str, Any],
) -> None:
    """Make a fresh model and its optimizer match a treated run, so that its checkpoint loads again.

    Repeats what changed the structure, and the learning rates with all that schedulers compute them from; weights come
    from the checkpoint. Models and optimizers in the order in which they were watched. All of it is done, or nothing.

    Raises:
        UsageError: for a prescription that cannot be read, or that does not fit the model.

    """
    import torch

    from trainmedic.history import History
    from trainmedic.remedies.run import Run

    models = [model] if isinstance(model, torch.nn.Module) else list(model)
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
    run = Run(models, optimizers, History())
    undos: list[Undo] = []
    try:
        for change in read(prescription):
            undos += _repeat(change, run)
    except BaseException as error:
        for undo in reversed(undos):
            undo()
        if isinstance(error, TrainmedicError) and not isinstance(error, UsageError):
            raise UsageError(f"the prescription does not fit this model: {error}") from error
        raise


def _repeat(change: Change, run: "Run") -> list[Undo]:
    """Make one change again, if it is of a kind that a checkpoint does not bring by itself."""
    remedy = next((each for each in pharmacy() if each.name == change.remedy), None)
    if remedy is not None and remedy.replayed:
        try:
            return [remedy().apply(change, run)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"the prescription's {change.remedy} is not complete: {error!r}") from error
    if remedy is not None and remedy.scales_rates:
        from trainmedic.remedies._schedulers import scale_rates

        return [scale_rates(run.optimizers, (), _factor(change))]
    return []


def _factor(change: Change) -> float:
    """What a change multiplied the rates by."""
    try:
        before, after = ((x["rates"] if isinstance(x, Mapping) else x) for x in (change.before, change.after))
        factor = next((float(new) / float(old) for old, new in zip(before, after, strict=True) if float(old)), 1.0)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the prescription's {change.remedy} holds no rates: {error!r}") from error
    if not (math.isfinite(factor) and factor > 0):
        raise UsageError(f"the prescription's {change.remedy} would multiply rates by {factor}")
    return factor
