"""TM703: only what can be known, and nothing without an accelerator."""

import numpy as np
import pytest

from trainmedic.diagnose import Severity
from trainmedic.diagnose.judge import judge
from trainmedic.diagnose.rules.device_underused import DeviceUnderused, _operations
from trainmedic.history import History, Layer


def convolution(device: str, seconds: float = 0.01, batch: int = 32) -> History:
    """3 to 16 channels, kernels of 3 x 3, on images of 8 x 8."""
    layers = [Layer("conv", "Conv2d", 0, (16, 8, 8)), Layer("conv.weight", "parameter", 0, (16, 3, 3, 3))]
    return History.of(time_step=[seconds] * 200, facts={"devices": [device], "batch_size": batch}, layers=layers)


def test_operations_are_counted_by_shapes() -> None:
    assert _operations(convolution("cuda:0")) == 6 * 32 * (16 * 27) * 64


def test_tiny_on_a_device() -> None:
    [finding] = DeviceUnderused().check(convolution("cuda:0"))
    assert finding.severity == Severity.INFO
    assert "cuda:0 computes" in finding.message


@pytest.mark.parametrize("devices", [["cpu"], [], None])
def test_without_an_accelerator_it_says_why(devices: list[str] | None) -> None:
    history = convolution("cpu")
    history.facts["devices"] = devices
    diagnosis = judge(history, [DeviceUnderused()])
    assert [reason.reason for reason in diagnosis.not_checked] == ["no accelerator in use"]


def test_work_enough() -> None:
    assert list(DeviceUnderused().check(convolution("cuda:0", seconds=0.001, batch=100_000))) == []


def test_the_first_steps_do_not_count() -> None:
    history = convolution("cuda:0", batch=10_000)
    history.add_series("time/step", range(200), [30.0] * 50 + list(np.full(150, 0.001)))
    assert list(DeviceUnderused().check(history)) == []
