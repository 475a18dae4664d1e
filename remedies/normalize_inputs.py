"""Scale the inputs to mean 0 and deviation 1, feature by feature."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    from torch import nn


class NormalizeInputs(Remedy):
    """The first layer takes (input - mean) / deviation, which are those of the next training batches.

    They are buffers of that layer, so that checkpoints hold them, and evaluation uses the same. Its weights stay as
    they are: drawn for inputs of unit scale, they get such inputs now. Folding the scale into the weights would leave
    the model what it was, and with it the curvature that makes the training slow.

    Safety: unsafe. It changes what the model computes, at once.
    Works when: features lie far from unit scale, or their scales differ by orders.
    Does not help: targets out of scale (scale-targets); tokens, which are looked up and not weighed; a first layer that
    has learnt to live with the scale.
    Source: LeCun et al. 1998, "Efficient BackProp", section 4.3; the running sums: Chan et al. 1983, "Algorithms for
    computing the sample variance".
    """

    treats: ClassVar[tuple[str, ...]] = (
        "unnormalized-input",
        "not-learning",
        "collapsed-output",
        "dead-relu",
        "saturated-activation",
    )
    safety: ClassVar[Safety] = Safety.UNSAFE
    replayed: ClassVar[bool] = True
    batches: int = Field(10, ge=1, description="training batches that mean and deviation are taken of")
    far: float = Field(10.0, gt=1, description="scale of the largest feature, or its inverse, that is out of scale")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._layers import as_code
        from trainmedic.remedies._surgery import check_copies, check_models

        if not self._out_of_scale(finding, run):
            return None
        name = first_layer(run, "Standardised")
        if name is None:
            return None
        check_models(run)
        check_copies(run)
        layer = as_code(name, len(run.models) > 1)
        return Change(
            remedy=self.name,
            target=(name,),
            after={"batches": self.batches},
            summary=f"what {name} takes is scaled to mean 0 and deviation 1, feature by feature",
            code="mean, std = x_train.mean(0), x_train.std(0)\n"
            f"x = (x - mean) / std.clamp_min(1e-6)  # before {layer}, in training and validation",
        )

    def _out_of_scale(self, finding: Finding, run: Run) -> bool:
        if finding.name == "unnormalized-input":
            return any(where.startswith("input/") for where in finding.where)
        if "input/feature_scale_max" not in run.history:
            return False
        largest = run.history.series("input/feature_scale_max").values[-1]
        return bool(largest > self.far or 0 < largest < 1 / self.far)

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._first import Standardised
        from trainmedic.remedies._surgery import check_models, graft_all

        check_models(run)
        live = layers_that_take_numbers(change, run)
        batches = int(change.after["batches"])
        return graft_all(run, change.target, live, Standardised, lambda m: Standardised.made_for(m, batches))


def first_layer(run: Run, graft: str) -> str | None:
    """The layer that takes the input; ``None`` where it takes no features, is not known, or has ``graft``."""
    from trainmedic.remedies._first import takes_numbers
    from trainmedic.remedies._graft import grafts
    from trainmedic.remedies._layers import modules

    name = run.history.facts.get("input_layer")
    module = modules(run).get(name) if isinstance(name, str) else None
    if module is None or not takes_numbers(module) or len(run.models) > 1:
        return None
    if "forward" in vars(module):
        raise Refused(f"the forward method of {name} was replaced on the instance")
    if name in run.history.facts.get("called_repeatedly", ()):
        raise Refused(f"{name} runs several times in one forward pass, not on the input alone")
    return None if graft in {kind.__name__ for kind in grafts(type(module))} else name


def layers_that_take_numbers(change: Change, run: Run) -> "dict[str, nn.Module]":
    """All modules; raises ``Refused`` where the change's are none that take features."""
    from trainmedic.remedies._first import takes_numbers
    from trainmedic.remedies._layers import modules

    live = modules(run)
    if wrong := [name for name in change.target if name not in live or not takes_numbers(live[name])]:
        raise Refused(f"there is no layer named {wrong[0]!r} that takes features")
    return live
