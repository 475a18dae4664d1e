"""Load batches in other processes, while the step computes."""

import os
from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class AddLoaderWorkers(Advice):
    """A DataLoader with workers, pinned memory and batches fetched ahead.

    Safety: manual. How many processes a machine bears is for people to say.
    Works when: steps wait for their batches.
    Does not help: storage that cannot deliver more; work that could be done once, before training.
    Source: torch's documentation of torch.utils.data, on loading by several processes.
    """

    treats: ClassVar[tuple[str, ...]] = ("data-starved",)
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        workers = min(8, max(2, (os.cpu_count() or 2) - 1))
        return f"batches loaded by {workers} processes", (
            f"loader = DataLoader(train_set, batch_size={run.history.facts.get('batch_size', 64)}, shuffle=True,\n"
            f"                    num_workers={workers}, persistent_workers=True, prefetch_factor=4, pin_memory=True)\n"
            "x = x.to(device, non_blocking=True)"
        )
