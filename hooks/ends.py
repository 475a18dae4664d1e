"""The two ends of a model: what its first layer takes, what comes out at last, and what that is held against."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainmedic.hooks.activations import first_tensor
from trainmedic.hooks.functions import loss_made_by
from trainmedic.hooks.reading import Reading
from trainmedic.hooks.sampling import unreadable

SAMPLES = 256
"""Samples of a batch whose outputs and targets are looked at, at least, where there are as many."""
ELEMENTS = 1 << 20
"""Elements of an output that are looked at, at most, as long as one sample has no more."""
CLASSES = 100
"""Classes that are counted one by one, at most."""


class Ends:
    """Measures inputs, outputs and targets on measured steps.

    Outputs and targets are those of the criterion's call. Where the criterion is a function, nobody sees its call: the
    model's output and the batch's target are taken instead, where the batch is known and the two fit.
    """

    def __init__(self, loss_fn: Any, sample: int) -> None:
        self.loss_fn = loss_fn
        self.sample = sample
        self.observed: dict[str, Any] = {}
        self.target: Tensor | None = None  # of the batch, if the loader is known
        self._first: nn.Module | None = None  # the first module with weights that takes numbers
        self._output: tuple[Tensor, int, int] | None = None  # a part, every how many samples, how many in all
        self._seen = False

    def begin(self) -> None:
        """A new step starts."""
        self._output, self._seen = None, False
        self._criterion: nn.Module | None = None

    def forget(self) -> None:
        """Keep no tensor."""
        self.target = self._output = self._first = None

    def batch(self, batch: Any) -> None:
        """The batch of the step that begins: a pair's second part is the target."""
        pair = isinstance(batch, list | tuple) and len(batch) == 2
        self.target = batch[1] if pair and isinstance(batch[1], Tensor) else None

    def is_criterion(self, module: nn.Module) -> bool:
        """Whether a module is the loss function, given or of torch's own."""
        return module is self.loss_fn or isinstance(module, nn.modules.loss._Loss)

    # -- what the forward hook hands over ------------------------------------------------------------------------

    def layer_called(self, module: nn.Module, name: str, arguments: Any, reading: Reading, step: int) -> None:
        """A leaf ran: the first one with weights tells what the model is fed."""
        inside = torch._C._current_graph_task_id() != -1  # recomputed on the way back: the last part comes first
        if self._first is None and not inside and next(module.parameters(recurse=False), None) is not None:
            self._first = module
            self.observed["input_layer"] = name
        taken = first_tensor(arguments)
        if module is self._first and taken is not None and taken.ndim > 1 and not unreadable(taken):
            channels = isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase | nn.GroupNorm)
            self._put_input(taken, 1 if channels else -1, reading, step)

    def model_called(self, output: Any) -> None:
        """A watched model ran: keep a sample of what it put out, in case nobody sees the criterion's call."""
        tensor = first_tensor(output)
        self._output = None
        if tensor is None or unreadable(tensor):
            return
        if tensor.ndim and tensor.numel() and tensor.numel() <= ELEMENTS * tensor.shape[0]:
            every = _every(tensor)
            self._output = _copy(tensor, every), every, tensor.shape[0]

    def criterion_called(self, module: nn.Module, arguments: Sequence[Any], loss: Any, reading: Reading) -> None:
        """The criterion ran, on (output, target). Of several in a step the first counts, or the one that was given."""
        if self._seen and module is not self.loss_fn and module is not self._criterion:
            return
        self._criterion = module
        self.observed["loss"] = type(module).__name__
        if hasattr(module, "reduction"):
            self.observed["reduction"] = module.reduction
        if isinstance(loss, Tensor):
            self.loss_logged(loss)
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if any(unreadable(tensor) for tensor in tensors[:2] if tensor.is_floating_point()):
            return
        if len(tensors) < 2 or not (tensors[0].numel() and tensors[1].numel()):
            return
        if tensors[0].is_floating_point() and tensors[0].ndim and tensors[1].ndim:
            self._seen = True
            self.observed["batch_size"] = tensors[0].shape[0]
            self._put_pair(tensors[0].detach(), tensors[1].detach(), reading, class_axis=1)

    def loss_logged(self, loss: Tensor) -> None:
        """A loss with its graph: what made it is read once."""
        if "loss_graph" not in self.observed and loss.grad_fn is not None:
            for key, value in loss_made_by(loss).items():
                self.observed.setdefault(key, value)

    def step_ends(self, reading: Reading) -> None:
        """Fall back on model and batch where the criterion's call was not seen."""
        kept, target, self._output = self._output, self.target, None
        if self._seen or kept is None:
            return
        output, every, size = kept
        self.observed["batch_size"] = size
        if target is not None and target.ndim and target.shape[0] == size:
            part = _copy(target, every).to(output.device, non_blocking=True)
            self._put_pair(output, part, reading, class_axis=-1)
        else:
            self._put_output(output, reading)

    # -- statistics ----------------------------------------------------------------------------------------------

    def _put_input(self, taken: Tensor, axis: int, reading: Reading, step: int) -> None:
        """Scale of the input as a whole and per feature: a feature's root mean square, constants left out."""
        low, high = taken.detach().aminmax()
        reading.put("input/min", low)
        reading.put("input/max", high)
        values = taken.detach().movedim(axis, 1)
        features = values.shape[1]
        part = values[:: max(1, values.shape[0] // SAMPLES)].flatten(2) if values.ndim > 2 else values[:, :, None]
        every = max(1, part.numel() // max(self.sample, features))
        part = part[:, :, step % every :: every] if every < part.shape[2] else part[:, :, :1]
        part = part.float()
        spread, mean = torch.var_mean(part, correction=0)
        reading.put("input/mean", mean)
        reading.put("input/std", spread, finish=math.sqrt)
        per_feature, centre = torch.var_mean(part, (0, 2), correction=0)
        scale = (per_feature + centre.square()).sqrt()
        scale = torch.where(per_feature > 0, scale, torch.nan)
        reading.put("input/feature_scale", scale.nanmedian())
        reading.put("input/feature_scale_max", scale.nan_to_num(0.0).amax())
        reading.put("input/constant_features", (per_feature == 0).float().mean())

    @torch.no_grad()
    def _put_output(self, output: Tensor, reading: Reading) -> None:
        reading.put("output/min", output.amin())
        reading.put("output/max", output.amax())
        spread, mean = torch.var_mean(output, correction=0)
        reading.put("output/mean", mean)
        reading.put("output/std", spread, finish=math.sqrt)
        if output.shape[0] > 1:
            reading.put("output/batch_std", (output - output.mean(0)).square().mean(), finish=math.sqrt)

    @torch.no_grad()
    def _put_pair(self, output: Tensor, target: Tensor, reading: Reading, class_axis: int) -> None:
        """An output and its target, whole or a part of both; ``class_axis`` is tried first."""
        labels = not target.is_floating_point() and not target.is_complex()
        if labels and output.ndim == target.ndim + 1:
            axis = self._class_axis(output, target, class_axis)
            if axis is not None:
                self._put_classes(*_positions(output, target, axis), reading)
                return
        every = _every(output)
        self._put_output(_copy(output, every), reading)
        known = self._seen or not labels or self.observed.get("loss") is None
        if known and not target.is_complex() and target.shape[0] == output.shape[0]:
            self._put_scale(_copy(target, every).float(), output.shape == target.shape, reading)

    def _class_axis(self, output: Tensor, target: Tensor, wanted: int) -> int | None:
        """Along which dimension classes lie, if any; where the criterion was not seen, only one may fit."""
        if not self._seen and self.observed.get("loss", "CrossEntropyLoss") not in ("CrossEntropyLoss", "NLLLoss"):
            return None
        fit = []
        for axis in {1, output.ndim - 1}:
            rest = [size for i, size in enumerate(output.shape) if i != axis]
            if output.shape[axis] > 1 and rest == list(target.shape):
                fit.append(axis)
        if self._seen and 1 in fit:
            return wanted
        return fit[0] if len(fit) == 1 else None

    def _put_classes(self, scores: Tensor, labels: Tensor, reading: Reading) -> None:
        """(n, classes) and (n,): do rows look like probabilities, and which classes are predicted and asked for."""
        self._put_output(scores, reading)
        classes = self.observed["classes"] = scores.shape[1]
        reading.put("output/row_sum", scores.sum(1).mean())
        reading.put("output/row_sum_error", (scores.sum(1) - 1).abs().amax())
        reading.put("output/log_sum_exp", scores.logsumexp(1).abs().amax())
        predicted = scores.argmax(1)
        known = (labels >= 0) & (labels < classes)  # ignore_index is no class
        counted = known.sum().clamp_min(1)
        reading.put("output/accuracy", ((predicted == labels) & known).sum() / counted)
        if classes > CLASSES:
            return
        ids, columns = torch.arange(classes, device=scores.device), tuple(map(str, range(classes)))
        for statistic, chosen in (("label_share", labels), ("predicted_share", predicted)):
            counts = ((chosen[:, None] == ids) & known[:, None]).float().sum(0)
            reading.put_row(statistic, columns, counts / counted)

    def _put_scale(self, target: Tensor, same_shape: bool, reading: Reading) -> None:
        """Numbers to be met: their scale, and whether they are yes and no."""
        reading.put("target/min", target.amin())
        reading.put("target/max", target.amax())
        spread, mean = torch.var_mean(target, correction=0)
        reading.put("target/mean", mean)
        reading.put("target/std", spread, finish=math.sqrt)
        reading.put("target/binary", ((target == 0) | (target == 1)).float().mean())
        reading.put("target/same_shape", float(same_shape))


def _every(tensor: Tensor) -> int:
    """Every how many samples of a batch to look at."""
    each = max(tensor.numel() // max(tensor.shape[0], 1), 1)
    wanted = max(1, min(SAMPLES, ELEMENTS // each))
    return -(-tensor.shape[0] // wanted) or 1


def _copy(tensor: Tensor, every: int) -> Tensor:
    """Every so many samples of a batch, in single precision if they are fractions; a copy."""
    part = tensor.detach()[::every]
    return part.float().clone() if part.is_floating_point() else part.clone()


def _positions(output: Tensor, target: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """At most ``SAMPLES`` places where a class is asked for: scores (n, classes) and labels (n,)."""
    classes = output.shape[axis]
    wanted = max(8, min(SAMPLES, ELEMENTS // classes))
    samples = -(-output.shape[0] // wanted) or 1
    scores = output[::samples].movedim(axis, 1)
    labels = target[::samples]
    if scores.ndim > 2:
        places = scores[0, 0].numel()
        every = max(1, places * scores.shape[0] // wanted)
        scores = scores.flatten(2)[:, :, ::every].transpose(1, 2).reshape(-1, classes)
        labels = labels.flatten(1)[:, ::every].reshape(-1)
    return scores.float(), labels.clone()
