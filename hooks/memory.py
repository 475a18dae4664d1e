"""How much memory the process and its devices hold."""

import contextlib
import os
from collections.abc import Iterable

import torch

STATM = "/proc/self/statm"


class Memory:
    """Bytes in use, cheap enough for every step. Where the system does not tell them, nothing is read."""

    def __init__(self) -> None:
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open(STATM, os.O_RDONLY | os.O_CLOEXEC)
            self._page = os.sysconf("SC_PAGE_SIZE")

    def host(self) -> float | None:
        """Resident memory of this process in bytes."""
        if self._file < 0:
            return None
        return float(int(os.pread(self._file, 128, 0).split()[1]) * self._page)

    @staticmethod
    def device(devices: Iterable[torch.device]) -> float | None:
        """Bytes that tensors hold on CUDA devices, all together."""
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return None
        held = [torch.cuda.memory_allocated(device) for device in set(devices) if device.type == "cuda"]
        return float(sum(held)) if held else None

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def resident() -> float | None:
    """Resident memory of this process in bytes, asked for once."""
    memory = Memory()
    try:
        return memory.host()
    finally:
        memory.close()
