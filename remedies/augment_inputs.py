"""Show other inputs each time, against overfitting."""

from typing import ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.normalize_inputs import first_layer, layers_that_take_numbers
from trainmedic.remedies.remedy import Remedy, Undo
from trainmedic.remedies.run import Run


class AugmentInputs(Remedy):
    """In training the first layer takes images shifted by a few pixels, or features with a little noise.

    Each image moves by its own whole number of pixels, up to an eighth of its side; features get Gaussian noise of a
    tenth of their deviation. Both keep labels true whatever the data mean, as flips, colours and crops do not. Random
    numbers are torch's, as in dropout; nothing is added to the state_dict, and evaluation sees inputs as they are.

    Safety: unsafe. It changes the data that the model learns from.
    Works when: there are few samples, and the model learns them by heart.
    Does not help: tokens and other inputs that are looked up; tasks where the place is the answer (segmentation,
    boxes).
    Source: Simard et al. 2003, "Best practices for convolutional neural networks applied to visual document analysis";
    four pixels of 32: He et al. 2016, arXiv:1512.03385, section 4.2; noise is a penalty on slopes: Bishop 1995,
    "Training with noise is equivalent to Tikhonov regularization".
    """

    treats: ClassVar[tuple[str, ...]] = ("overfitting", "class-imbalance")
    safety: ClassVar[Safety] = Safety.UNSAFE
    changes_loss: ClassVar[bool] = True
    replayed: ClassVar[bool] = True
    shift: float = Field(0.125, gt=0, le=0.5, description="share of an image's side that it moves by at most")
    noise: float = Field(0.1, gt=0, description="deviation of the noise, in deviations of the feature")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._surgery import check_models

        name = first_layer(run, "Varied")
        if name is None:
            return None
        check_models(run)
        shift = self._pixels(name, run)
        if shift and not _ends_flat(run):
            return None
        return Change(
            remedy=self.name,
            target=(name,),
            after={"shift": shift, "noise": self.noise},
            summary=f"training images shifted by up to {shift} pixels" if shift else "noise added to training inputs",
            code=f"augment = torchvision.transforms.RandomAffine(0, translate=({self.shift:g}, {self.shift:g}))"
            if shift
            else f"x = x + {self.noise:g} * x.std(0) * torch.randn_like(x)  # in training only",
        )

    def _pixels(self, name: str, run: Run) -> int:
        """The most that an image moves by: an eighth of what the first convolution puts out per side, by its stride."""
        from torch.nn.modules.conv import _ConvNd

        from trainmedic.remedies._layers import modules

        layer, known = modules(run)[name], run.history.architecture.get(name)
        if not isinstance(layer, _ConvNd) or known is None or len(known.shape) < 2:
            return 0
        return max(1, round(self.shift * min(known.shape[1:]) * max(layer.stride)))

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._first import Varied
        from trainmedic.remedies._surgery import check_models, graft_all

        check_models(run)
        live = layers_that_take_numbers(change, run)
        parts = {"medic_shift": int(change.after["shift"]), "medic_noise": float(change.after["noise"])}
        return graft_all(run, change.target, live, Varied, lambda _: parts)


def _ends_flat(run: Run) -> bool:
    """Whether the last layer with weights is linear: what comes out of a convolution has a place."""
    from torch import nn

    from trainmedic.remedies._layers import Role, chains

    weighty = [link for chain in chains(run) for link in chain if link.role is Role.WEIGHTS]
    return bool(weighty) and isinstance(weighty[-1].module, nn.Linear)
