"""``prescription.json``: what was changed in a run and kept, so that a fresh model can be made to match."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainmedic.errors import UsageError
from trainmedic.remedies.change import Change, Treatment

if TYPE_CHECKING:
    import torch

VERSION = 1


def write(path: Path, treatments: Iterable[Treatment]) -> None:
    """Write the treatments that were kept, whole or not at all."""
    kept = [treatment.model_dump(mode="json") for treatment in treatments if treatment.outcome == "kept"]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part", text=True)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"version": VERSION, "treatments": kept}, file, indent=1)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(prescription: str | os.PathLike[str] | Mapping[str, Any]) -> list[Change]:
    """The changes of a prescription (a path, or its content), in order; ``UsageError`` if it is none."""
    source = "prescription"
    content: Any = prescription
    if not isinstance(prescription, Mapping):
        source = os.fspath(prescription)
        try:
            content = json.loads(Path(prescription).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{source}: cannot be read as a prescription: {error}") from error
    if not isinstance(content, Mapping) or content.get("version") != VERSION:
        raise UsageError(f"{source}: not a prescription of version {VERSION}")
    try:
        return [Treatment.model_validate(entry).change for entry in content.get("treatments", [])]
    except (ValidationError, TypeError) as error:
        raise UsageError(f"{source}: not a prescription: {str(error).splitlines()[0]}") from error


def replay(
    model: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    prescription: str | os.PathLike[str] | Mapping[str, Any],
) -> None:
    """Make a fresh model and its optimizer match a treated run, so that its checkpoint loads again.

    Repeats what changed the structure (a checkpoint holds weights and rates, and brings those itself).

    Raises:
        UsageError: for a prescription that cannot be read, or that does not fit the model.

    """
    from trainmedic.history import History
    from trainmedic.remedies.remedy import Refused, pharmacy
    from trainmedic.remedies.run import Run

    run = Run([model], [optimizer], History())
    by_name = {remedy.name: remedy for remedy in pharmacy()}
    for change in read(prescription):
        if change.remedy != "insert-batchnorm":
            continue
        try:
            by_name[change.remedy]().apply(change, run)
        except Refused as reason:
            raise UsageError(f"the prescription does not fit this model: {reason}") from reason
