"""Train towards labels that are not quite sure."""

from typing import Any, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class LabelSmoothing(Remedy):
    """The live nn.CrossEntropyLoss hands back the gradients of a loss with smoothed labels.

    Its value stays that of the loss without, so that what is logged stays comparable, with the time before and with
    validation.

    Safety: unsafe. It changes the objective.
    Works when: a classifier grows surer than it is right: validation loss rises while its accuracy stands.
    Does not help: a criterion that is a function, or handed over to nobody: pass loss_fn to watch; labels that are
    already soft; distillation from this model.
    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7 (0.1); Mueller et al. 2019, arXiv:1906.02629.
    """

    treats: ClassVar[tuple[str, ...]] = ("overfitting",)
    safety: ClassVar[Safety] = Safety.UNSAFE
    changes_loss: ClassVar[bool] = True
    smoothing: float = Field(0.1, gt=0, lt=1, description="share of each label that is spread over all classes")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        if run.history.facts.get("loss") not in (None, "CrossEntropyLoss", "cross_entropy") and run.loss_fn is None:
            return None
        if run.loss_fn is not None and not self._fits(run):
            return None
        criterion = live_criterion(run, f"label_smoothing={self.smoothing:g}")
        if float(criterion.label_smoothing) >= self.smoothing or "medic_smoothing" in vars(criterion):
            return None
        return Change(
            remedy=self.name,
            target=("loss_fn",),
            before=float(criterion.label_smoothing),
            after=self.smoothing,
            summary=f"labels smoothed by {self.smoothing:g} in training",
            code=f"criterion = nn.CrossEntropyLoss(label_smoothing={self.smoothing:g})",
        )

    def _fits(self, run: Run) -> bool:
        """Whether the loss is a cross-entropy over classes, a function or a module."""
        from trainmedic.remedies._criterion import smoothable

        return smoothable(run.loss_fn) or getattr(run.loss_fn, "__name__", "") == "cross_entropy"

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._criterion import Smoothed, smoothable
        from trainmedic.remedies._graft import grafted

        criterion = live_criterion(run, "label_smoothing")
        if not smoothable(criterion):
            raise Refused(f"{type(criterion).__name__} smooths no labels")
        return grafted(criterion, Smoothed, {"medic_smoothing": float(change.after)})


def live_criterion(run: Run, option: str) -> Any:
    """The user's own criterion; raises ``Refused`` where it is none that can be changed in place."""
    from torch import nn

    if run.loss_fn is None:
        raise Refused("the loss function is not known: pass it as loss_fn to trainmedic.watch")
    if not isinstance(run.loss_fn, nn.Module):
        name = getattr(run.loss_fn, "__name__", type(run.loss_fn).__name__)
        raise Refused(
            f"the loss is a function ({name}), which cannot be changed in place; write {option} into its call"
        )
    if "forward" in vars(run.loss_fn) or getattr(run.loss_fn, "_compiled_call_impl", None) is not None:
        raise Refused("the loss function is compiled, or its forward method was replaced")
    return run.loss_fn
