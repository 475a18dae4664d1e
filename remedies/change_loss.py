"""Give output and loss the same meaning."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run

FITTING: dict[str, tuple[str, str]] = {
    "activations before the loss": (
        "the activation before the loss taken out, as the loss applies one itself",
        "self.head = nn.Linear(width, classes)  # no nn.Softmax after it\ncriterion = nn.CrossEntropyLoss()",
    ),
    "log sum exp": (
        "the loss changed to one that takes raw scores",
        "criterion = nn.CrossEntropyLoss()  # in place of nn.NLLLoss; or nn.LogSoftmax(dim=1) as the last layer",
    ),
    "range of outputs": (
        "the activation of the last layer taken out, as targets lie beyond its range",
        "self.head = nn.Linear(width, outputs)  # no nn.Sigmoid or nn.Tanh after it\ncriterion = nn.MSELoss()",
    ),
    "equal shapes": (
        "output and target given one shape, in place of being spread over each other",
        "loss = criterion(output.squeeze(1), target)",
    ),
    "loss": (
        "the sign of each term of the loss checked, as it is below what it can be",
        "loss = criterion(output, target)  # no minus before a criterion of torch\nassert loss >= 0",
    ),
}
"""By what the evidence is of: what was to be done, and the code for it."""


class ChangeLoss(Advice):
    """Write the loss that fits what the model puts out: raw scores, probabilities, log-probabilities, numbers.

    Safety: manual. What is optimised is for people to say.
    Works when: a loss is below its floor or stays at chance because it takes something else than the output is.
    Does not help: data and rates.
    Source: torch's documentation of nn.CrossEntropyLoss, nn.NLLLoss and nn.BCEWithLogitsLoss.
    """

    treats: ClassVar[tuple[str, ...]] = ("loss-mismatch",)
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        name = finding.evidence[0].name if finding.evidence else ""
        return next((written for part, written in FITTING.items() if part in name), FITTING["loss"])
