"""What all tests share: machines are slow at times, so no example of hypothesis fails for the time that it took."""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _nothing_stays_compiled() -> Iterator[None]:
    """What one test has compiled must not be there for the next: compiled modules anywhere keep hooks from moving."""
    yield
    if getattr(sys.modules.get("torch._dynamo.convert_frame"), "FRAME_COUNTER", 0):
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(autouse=True)
def _no_medic_stays_open() -> Iterator[None]:
    """A medic that a test leaves open keeps a hook on all modules, which the next test would see."""
    yield
    if "trainmedic.hooks.probe" in sys.modules:
        registry = sys.modules["torch.nn.modules.module"]._global_module_registration_hooks
        for hook in list(registry.values()):
            hook.__self__.detach()
