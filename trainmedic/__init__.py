"""A medic for PyTorch training runs: measures a run, tells what is wrong at the root, and treats it.

``watch`` a live run, ``read`` the logs of any tool, ``examine`` a history. Names are imported when they are first
used: the command line and the log readers need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from trainmedic.errors import TrainmedicError, UnreadableError, UsageError

if TYPE_CHECKING:
    from trainmedic.analysis import examine
    from trainmedic.diagnose import Finding
    from trainmedic.history import History
    from trainmedic.medic import Medic
    from trainmedic.readers import read
    from trainmedic.remedies.prescription import replay
    from trainmedic.reports.report import Report
    from trainmedic.settings import Settings
    from trainmedic.watching import watch

__version__ = "0.1.0"

_HOMES = {
    "Finding": "trainmedic.diagnose",
    "History": "trainmedic.history",
    "Medic": "trainmedic.medic",
    "Report": "trainmedic.reports.report",
    "Settings": "trainmedic.settings",
    "examine": "trainmedic.analysis",
    "read": "trainmedic.readers",
    "replay": "trainmedic.remedies.prescription",
    "watch": "trainmedic.watching",
}

__all__ = [
    "Finding",
    "History",
    "Medic",
    "Report",
    "Settings",
    "TrainmedicError",
    "UnreadableError",
    "UsageError",
    "__version__",
    "examine",
    "read",
    "replay",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trainmedic' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
