"""What torch.compile has to do with a run: code that it has made must not see hooks come and go."""

import gc
import sys
from collections.abc import Callable, Iterable

from torch import fx, nn

HOOKS = "_global_forward_hooks"
"""What a guard of compiled code names if that code would be compiled again for a hook on all modules."""


def frames() -> int:
    """How many pieces of code torch.compile has looked at in this process."""
    module = sys.modules.get("torch._dynamo.convert_frame")
    return int(getattr(module, "FRAME_COUNTER", 0))


def sees_hooks() -> bool:
    """Whether anything compiled in this process calls modules, so that it depends on hooks being there or not.

    Compiled functions of tensors alone (a loss, an augmentation, an optimizer's step) do not. Where torch does not
    tell, all do.
    """
    return frames() > 0 and _surely(_sees_hooks)


def _sees_hooks() -> bool:
    try:
        from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
        from torch._dynamo.convert_frame import input_codes

        codes = [code for reference in input_codes.seen if (code := reference()) is not None]
        return any(HOOKS in str(entry.guard_manager) for code in codes for entry in _debug_get_cache_entry_list(code))
    except Exception:  # internals of torch, which may move
        return True


def is_compiled(models: Iterable[nn.Module]) -> bool:
    """Whether any part of these models runs compiled, or any module of this process has a compiled stand-in.

    A stand-in, what ``torch.compile(model)`` returns, is nothing that the model itself would know of.
    """
    modules = [module for model in models for module in model.modules()]
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in modules):
        return True
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    stand_in = getattr(dynamo, "OptimizedModule", None)
    if stand_in is None or not any(getattr(dynamo, "cached_backends", {0: True}).values()):
        return False  # nothing was ever handed to torch.compile
    return _surely(
        lambda: any(issubclass(type(thing), stand_in) and not _is_graph(thing) for thing in gc.get_objects())
    )


def _is_graph(stand_in: nn.Module) -> bool:
    """Whether it stands for a graph that torch itself has made (compiled autograd keeps some), not for a model."""
    return isinstance(stand_in.__dict__.get("_modules", {}).get("_orig_mod"), fx.GraphModule)


def _surely(found: Callable[[], bool]) -> bool:
    """What is found is looked for again among what is really still there: garbage goes at any time."""
    return found() and (gc.collect(), found())[1]
