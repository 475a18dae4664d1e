"""What torch.compile has to do with a run: code that it has made must not see hooks come and go."""

import sys
from collections.abc import Iterable

from torch import nn


def frames() -> int:
    """How many pieces of code torch.compile has looked at in this process."""
    module = sys.modules.get("torch._dynamo.convert_frame")
    return int(getattr(module, "FRAME_COUNTER", 0))


def is_compiled(models: Iterable[nn.Module]) -> bool:
    """Whether any part of these models runs compiled."""
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for model in models
        for module in model.modules()
    )
