"""``Store``: where the copies of saved states lie, within a limit of host memory."""

import contextlib
import os
import shutil
import tempfile
import uuid
import weakref
from pathlib import Path

import torch
from torch import Tensor

from trainmedic.errors import TrainmedicError

SMALL = 1 << 20
"""Bytes below which a tensor is not worth a file."""


class Store:
    """Gives copies their memory: of the host, and files mapped into memory once that would take more than ``limit``.

    Files are unlinked as soon as they are mapped, so that nothing is left of them, however the process ends; where a
    system does not allow that, they go when the copy goes. Both kinds are plain tensors on the CPU.

    Args:
        limit: bytes of host memory that all living copies may take together; small tensors count, but stay there.
        folder: where files go; the system's folder for temporary files unless given.

    """

    def __init__(self, limit: float, folder: str | os.PathLike[str] | None = None) -> None:
        self.limit = limit
        self.held = self.filed = 0
        self._folder = Path(folder) if folder is not None else None

    def empty_like(self, source: Tensor) -> Tensor:
        """Memory for a copy of ``source``."""
        size = source.numel() * source.element_size()
        if size < SMALL or self.held + size <= self.limit:
            target = torch.empty_like(source, device="cpu")
            self.held += size
            weakref.finalize(target, self._released, size)
            return target
        return self._mapped(source, size)

    def _mapped(self, source: Tensor, size: int) -> Tensor:
        folder = self._folder or Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < size:
            raise TrainmedicError(
                f"a state to go back to takes {size / 1e6:.3g} MB more than states_mb leaves, and {folder} has "
                f"{free / 1e6:.3g} MB left: raise states_mb, or give a logdir with room"
            )
        path = folder / f"state-{uuid.uuid4().hex}.part"
        target = torch.from_file(str(path), shared=True, size=source.numel(), dtype=source.dtype).view(source.shape)
        self.filed += size
        weakref.finalize(target, self._unfiled, size, path)
        with contextlib.suppress(OSError):
            path.unlink()
        return target

    def _released(self, size: int) -> None:
        self.held -= size

    def _unfiled(self, size: int, path: Path) -> None:
        self.filed -= size
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
