"""Exchange an optimizer without adaptive steps for AdamW."""

import functools
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import rate_names
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    import torch

FROM = ("SGD", "ASGD", "Adagrad", "Adadelta", "Rprop", "RMSprop")
KEPT = ("params", "param_names", "lr", "initial_lr", "maximize", "fused")
"""What a group keeps of its options."""


class SwapOptimizer(Remedy):
    """The optimizer becomes an AdamW in place: its class, its options and its state change, and it stays the object.

    Groups keep their parameters. Their rates are AdamW's own for the largest, in the proportions that they had;
    schedules go on from there, at the share of their peak where they stand. Averages begin anew. The step that a
    scheduler has put around the old one is put around the new one.

    Safety: unsafe. Steps are of another kind and size from here on.
    Works when: gradients of layers or features differ by orders, so that no one rate fits them all.
    Does not help: Adam and its kin, which adapt already; a schedule that moves the momentum as well (OneCycleLR and
    CyclicLR with cycle_momentum), which is refused; a loss or data that are at fault.
    Source: Kingma and Ba 2015, arXiv:1412.6980 (rate 1e-3); Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    treats: ClassVar[tuple[str, ...]] = ("slow-convergence", "vanishing-gradient", "plateau", "not-learning")
    safety: ClassVar[Safety] = Safety.UNSAFE
    replayed: ClassVar[bool] = True
    rate: float = Field(1e-3, gt=0, description="learning rate of the group that had the largest")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._surgery import check_models

        kinds = [type(optimizer).__name__ for optimizer in run.optimizers]
        if not all(kind in FROM for kind in kinds):
            return None
        check_models(run)
        _check(run)
        before = run.learning_rates()
        most = max(before, default=0.0)
        peaks = [float(g.get("initial_lr", g["lr"])) for o in run.optimizers for g in o.param_groups]
        scale = self.rate / max(max(peaks, default=0.0), most, 1e-30)
        after = [rate * scale for rate in before]
        return Change(
            remedy=self.name,
            target=rate_names(run),
            before={"optimizer": kinds[0], "rates": before},
            after={"optimizer": "AdamW", "rates": after, "scale": scale},
            summary=f"{kinds[0]} exchanged for AdamW with a learning rate of {max(after, default=0.0):.3g}",
            code=f"optimizer = torch.optim.AdamW(model.parameters(), lr={self.rate:.3g}, weight_decay=0.0)",
        )

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._schedulers import scale_rates
        from trainmedic.remedies._surgery import check_models

        check_models(run)
        if not all(type(optimizer).__name__ in FROM for optimizer in run.optimizers):
            raise Refused(f"{type(run.optimizers[0]).__name__} is not exchanged for AdamW")
        _check(run)
        undos: list[Undo] = []

        def undo() -> None:
            while undos:
                undos.pop()()

        try:
            undos.append(scale_rates(run.optimizers, run.schedulers, float(change.after["scale"])))
            for optimizer in run.optimizers:
                _exchange(optimizer, undos)
        except BaseException:
            undo()
            raise
        return undo


def _check(run: Run) -> None:
    """Raise ``Refused`` where something moves options that AdamW does not have, or parameters that it cannot train."""
    from trainmedic.remedies._schedulers import schedulers_of

    for scheduler in schedulers_of(run.optimizers, run.schedulers):
        if getattr(scheduler, "cycle_momentum", False):
            raise Refused(f"{type(scheduler).__name__} moves the momentum, which AdamW has not")
    for optimizer in run.optimizers:
        if getattr(type(optimizer), "__module__", "").split(".")[:2] != ["torch", "optim"]:
            raise Refused(f"{type(optimizer).__name__} is not torch's own")
        if any(p.grad is not None and p.grad.is_sparse for group in optimizer.param_groups for p in group["params"]):
            raise Refused("AdamW takes no sparse gradients")
        if any(group.get("differentiable") for group in optimizer.param_groups):
            raise Refused("the optimizer is differentiated through")


def _exchange(optimizer: "torch.optim.Optimizer", undos: list[Undo]) -> None:
    import torch

    from trainmedic.remedies._schedulers import GROUP_RATES

    old, own = type(optimizer), dict(vars(optimizer))
    state = dict(optimizer.state)
    options = [dict(group) for group in optimizer.param_groups]
    groups = list(optimizer.param_groups)

    def undo() -> None:
        optimizer.__class__ = old
        for key in [key for key in vars(optimizer) if key not in own]:
            del vars(optimizer)[key]
        vars(optimizer).update({key: own[key] for key in ("defaults", "step") if key in own})
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, kept in zip(groups, options, strict=True):
            rates: dict[str, Any] = {k: group[k] for k in GROUP_RATES if k in group}  # scaled back by others
            group.clear()
            group.update({**kept, **rates})

    undos.append(undo)
    fresh = torch.optim.AdamW([torch.zeros(1)], weight_decay=0.0)  # of a class that calls the hooks of its steps
    fixed = {key: value for key, value in fresh.param_groups[0].items() if key not in ("params", "lr")}
    optimizer.__class__ = type(fresh)
    optimizer.state.clear()
    _take_over(optimizer, fixed)
    vars(optimizer)["defaults"] = {**fresh.defaults, "lr": optimizer.defaults.get("lr", fresh.defaults["lr"])}
    if "step" in vars(optimizer):
        vars(optimizer)["step"] = _tracked(optimizer)


def _take_over(optimizer: "torch.optim.Optimizer", fixed: dict[str, Any]) -> None:
    """Give the groups their new options, while ``defaults`` still says which are the old ones."""
    for group in optimizer.param_groups:
        # what is no option of the old optimizer is a scheduler's, or the user's
        kept: dict[str, Any] = {k: v for k, v in group.items() if k in KEPT or k not in optimizer.defaults}
        decay = {"weight_decay": group["weight_decay"]} if group.get("decoupled_weight_decay") else {}
        group.clear()
        group.update({**fixed, **kept, **decay})


def _tracked(optimizer: "torch.optim.Optimizer") -> Any:
    """The step of the optimizer's class, marked as schedulers mark it to see whether it was called before theirs."""
    import weakref

    refers, step = weakref.ref(optimizer), type(optimizer).step

    @functools.wraps(step)
    def tracked(*args: Any, **kwargs: Any) -> Any:
        live: Any = refers()
        live._opt_called = True
        return step.__get__(live, type(live))(*args, **kwargs)

    tracked._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    return tracked
