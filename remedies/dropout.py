"""Drop units at random in training, against overfitting."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    from trainmedic.remedies._layers import Link


class Dropout(Remedy):
    """Dropout layers that the model has drop more; where it has none, what its last linear layers take is dropped.

    Of linear layers those get it that come after another layer with weights: hidden units are dropped, inputs are not.
    Nothing is added to the state_dict, and in evaluation the model computes what it did.

    Safety: unsafe. It changes what the model computes in training, at once.
    Works when: a model that is large for its data learns it by heart.
    Does not help: models that underfit; convolutions, whose neighbouring outputs say the same.
    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", section 7.3
    (0.5 of hidden units; 0.1 in transformers: Vaswani et al. 2017, arXiv:1706.03762, section 5.4).
    """

    treats: ClassVar[tuple[str, ...]] = ("overfitting",)
    safety: ClassVar[Safety] = Safety.UNSAFE
    changes_loss: ClassVar[bool] = True
    replayed: ClassVar[bool] = True
    share: float = Field(0.5, gt=0, lt=1, description="share of hidden units that are dropped")
    attention: float = Field(0.2, gt=0, lt=1, description="the same in a model with attention")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from torch import nn

        from trainmedic.remedies._layers import as_code
        from trainmedic.remedies._surgery import check_models

        check_models(run)
        share = self.attention if any(isinstance(m, nn.MultiheadAttention) for _, m in run.modules()) else self.share
        present = {name: module for name, module in run.modules() if isinstance(module, nn.modules.dropout._DropoutNd)}
        several = len(run.models) > 1
        if present:
            low = {name: float(module.p) for name, module in present.items() if module.p < share}
            if not low:
                return None
            return Change(
                remedy=self.name,
                target=tuple(low),
                before=low,
                after={"share": share, "raised": True},
                summary=f"dropout raised to {share:g} in {len(low)} layers",
                code="\n".join(f"{as_code(name, several)}.p = {share:g}" for name in low),
            )
        names = _hidden_linear(run)
        if not names:
            return None
        return Change(
            remedy=self.name,
            target=tuple(names),
            after={"share": share, "raised": False},
            summary=f"{share:g} of what {', '.join(names[:3])} takes is dropped in training",
            code="\n".join(f"{(c := as_code(n, several))} = nn.Sequential(nn.Dropout({share:g}), {c})" for n in names),
        )

    def apply(self, change: Change, run: Run) -> Undo:
        from torch import nn

        from trainmedic.remedies._dropping import Dropping, raise_all
        from trainmedic.remedies._layers import modules
        from trainmedic.remedies._surgery import check_models, graft_all

        check_models(run)
        live, share, raised = modules(run), float(change.after["share"]), bool(change.after["raised"])
        wanted: tuple[type[nn.Module], ...] = (nn.modules.dropout._DropoutNd,) if raised else (nn.Linear,)
        if wrong := [name for name in change.target if not isinstance(live.get(name), wanted)]:
            raise Refused(f"there is no layer named {wrong[0]!r} to drop units of")
        if raised:
            return raise_all([live[name] for name in change.target], share)
        return graft_all(run, change.target, live, Dropping, lambda _: {"medic_dropped": share})


def _hidden_linear(run: Run) -> list[str]:
    """Linear layers after another layer with weights, of a plain kind and called as modules."""
    from trainmedic.remedies._layers import Role, chains

    names = []
    for chain in chains(run):
        weighty = [link for link in chain if link.role in (Role.WEIGHTS, Role.RECURRENT, Role.OPAQUE)]
        names += [link.name for link in weighty[1:] if _fits(link, run)]
    return names


def _fits(link: "Link", run: Run) -> bool:
    from torch import nn

    from trainmedic.remedies._dropping import Dropping
    from trainmedic.remedies._graft import has_graft, plain
    from trainmedic.remedies._layers import modules

    module = link.module
    if (
        module is None
        or plain(type(module)) is not nn.Linear
        or has_graft(module, Dropping)
        or "forward" in vars(module)
    ):
        return False
    live, parts = modules(run), link.name.split(".")
    around = [live.get(".".join(parts[:n])) for n in range(1, len(parts))]
    fused = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer | nn.MultiheadAttention
    return not any(isinstance(part, fused) for part in around)
