"""Give the model more units where it is narrowest."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class WidenModel(Advice):
    """Double the narrowest hidden layer, once samples that are few enough are shown not to be learnt by heart.

    Safety: manual. What the model may cost is for people to say.
    Works when: training and validation both stay bad, with a rate and data that are right.
    Does not help: too much regularisation, which is to be taken away first; a task that cannot be learnt from its
    inputs.
    Source: Goodfellow et al. 2016, "Deep Learning", section 11.3; Kaplan et al. 2020, arXiv:2001.08361.
    """

    treats: ClassVar[tuple[str, ...]] = ("underfitting", "plateau")
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        weights = [
            layer for layer in run.history.architecture.values() if layer.kind == "parameter" and len(layer.shape) > 1
        ]
        if len(weights) < 2:
            return None
        narrow = min(weights[:-1], key=lambda layer: layer.shape[0])
        name = narrow.name.removesuffix(".weight")
        return f"{name} widened from {narrow.shape[0]} to {2 * narrow.shape[0]} units", (
            f"# {name}: {narrow.shape[0]} -> {2 * narrow.shape[0]} units, and what follows takes as many\n"
            "subset = torch.utils.data.Subset(train_set, range(100))  # first: can these be learnt by heart?"
        )
