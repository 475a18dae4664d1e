"""What the graph of a tensor tells of the functions that made it. Only names are read: nothing is kept or changed."""

from typing import Any

from torch import Tensor

FUNCTIONS = {
    "ReluBackward0": "relu",
    "LeakyReluBackward0": "leaky_relu",
    "EluBackward0": "elu",
    "GeluBackward0": "gelu",
    "SiluBackward0": "silu",
    "SigmoidBackward0": "sigmoid",
    "TanhBackward0": "tanh",
    "SoftmaxBackward0": "softmax",
    "SoftplusBackward0": "softplus",
}
PASSING = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "NativeDropout", "FusedDropout", "ToCopy", "Clone")
"""Functions that may come between an activation and the next module without hiding it."""

LOSSES = {
    "NllLossBackward0": "NLLLoss",
    "NllLoss2DBackward0": "NLLLoss",
    "MseLossBackward0": "MSELoss",
    "SmoothL1LossBackward0": "SmoothL1Loss",
    "HuberLossBackward0": "HuberLoss",
    "BinaryCrossEntropyBackward0": "BCELoss",
    "BinaryCrossEntropyWithLogitsBackward0": "BCEWithLogitsLoss",
    "CtcLossBackward0": "CTCLoss",
    "SoftMarginLossBackward0": "SoftMarginLoss",
}


def names(tensor: Tensor, depth: int = 8) -> list[str]:
    """Names of the functions that made a tensor, newest first, along the first input of each."""
    found: list[str] = []
    node: Any = tensor.grad_fn
    while node is not None and len(found) < depth:
        found.append(node.name())
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return found


def function_between(tensor: Tensor) -> str | None:
    """The activation function that made a tensor, also seen through pooling and dropout; ``None`` if none did."""
    node: Any = tensor.grad_fn
    for _ in range(4):
        name = node.name() if node is not None else ""
        if name in FUNCTIONS:
            return FUNCTIONS[name]
        inputs = [before for before, _ in node.next_functions if before is not None] if node is not None else []
        masked = name == "MulBackward0" and len(inputs) == 1  # times a constant: dropout, where it is not fused
        if not inputs or not (masked or name.startswith(PASSING)):
            return None
        node = inputs[0]
    return None


def loss_made_by(loss: Tensor) -> dict[str, Any]:
    """What the graph of a loss tells of it: ``loss``, the criterion by its module's name, and ``loss_graph``.

    ``loss_graph`` names the functions that made the loss, newest first; empty if it has no graph.
    """
    chain = names(loss)
    kinds = [LOSSES[name] for name in chain if name in LOSSES]
    known: dict[str, Any] = {"loss_graph": chain} if chain else {}
    if kinds:
        log_softmax = any(name == "LogSoftmaxBackward0" for name in chain)
        known["loss"] = "CrossEntropyLoss" if kinds[0] == "NLLLoss" and log_softmax else kinds[0]
    return known
