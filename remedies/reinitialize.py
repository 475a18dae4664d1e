"""Draw weights anew."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import by_steps, starts_at_zero
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainmedic.remedies._drawing import Ledger
    from trainmedic.remedies._layers import Link

Plan = dict[str, dict[str, Any]]
"""By layer: ``draw`` (the scheme); for single units also ``units``, ``norms`` and ``next`` (a layer, or null).

Where it was measured, ``scale`` is what the drawn weights are multiplied by.
"""

SIGMOIDS = 3
"""More of them in a row than this, with no norm between, let less than a hundredth of a gradient through."""


class Reinitialize(Remedy):
    """Draw weights anew: He before rectifiers, Xavier elsewhere, orthogonal from step to step; biases zero.

    Of dead rectifiers the layer that feeds them is drawn. Where at most half of its units are dead only those are:
    their incoming weights are drawn, what the next layer takes from them is set to zero, so that the output stays what
    it was until they have learnt. For other illnesses, and where weights began at zero, every layer of the model is
    drawn. Where the medic can take steps by itself, hidden layers are drawn orthonormal then, and scaled one after the
    other, until what each puts out for a kept batch has a deviation of one. The optimizer's state for what is drawn is
    cleared. The numbers come from a generator seeded by the step: the run's own random numbers are not touched.

    Safety: unsafe. What the layers had learnt is lost; early in a run that is little.
    Works when: units are dead, or the weights were drawn too small or too large for the depth.
    Does not help: a learning rate that kills the units again; activations that shrink every signal, such as many
    sigmoids in a row (insert-batchnorm); biases or inputs that are wrong elsewhere.
    Source: He et al. 2015, arXiv:1502.01852; Glorot and Bengio 2010; scaled by data: Mishkin and Matas 2016 (LSUV),
    arXiv:1511.06422; dead units: Sokar et al. 2023 (ReDo), arXiv:2302.12902.
    """

    treats: ClassVar[tuple[str, ...]] = (
        "dead-relu",
        "vanishing-gradient",
        "exploding-gradient",
        "bad-initialization",
        "collapsed-output",
        "not-learning",
        "saturated-activation",
    )
    safety: ClassVar[Safety] = Safety.UNSAFE
    off: float = Field(0.1, gt=0, lt=1, description="distance of a deviation from one that is near enough")
    tries: int = Field(5, ge=1, description="times that a layer is scaled, at most")
    whole_layer: float = Field(0.5, ge=0, le=1, description="share of dead units above which the whole layer is drawn")

    @classmethod
    def waits(cls, finding: Finding, run: Run) -> bool:
        return by_steps(finding, run)  # what steps have done, steps of that size will do again

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._layers import as_code
        from trainmedic.remedies._surgery import check_alone

        check_alone(run)
        single = finding.name == "dead-relu" and not starts_at_zero(run)
        plan = self._dead(finding, run) if single else _all(finding, run)
        if not plan:
            return None
        several = len(run.models) > 1
        return Change(
            remedy=self.name,
            target=tuple(plan),
            after=plan,
            summary=_summary(plan),
            code="\n".join(line for name, how in plan.items() for line in _code(as_code(name, several), how)),
        )

    def _dead(self, finding: Finding, run: Run) -> Plan:
        from trainmedic.remedies._layers import chains

        plan: Plan = {}
        for rectifier in finding.where:
            for chain in chains(run):
                at = next((i for i, link in enumerate(chain) if link.name == rectifier), None)
                if at is not None:
                    plan.update(self._feeding(chain, at, run))
        return plan

    def _feeding(self, chain: "list[Link]", at: int, run: Run) -> Plan:
        """How to draw the layer that feeds the rectifier at position ``at``."""
        from trainmedic.remedies._drawing import drawable
        from trainmedic.remedies._layers import Role, units_of

        before = next((i for i in reversed(range(at)) if chain[i].role is Role.WEIGHTS), None)
        layer = chain[before].module if before is not None else None
        if before is None or layer is None or not drawable(layer):
            return {}
        how: dict[str, Any] = {"draw": "he"}
        norms = [link.name for link in chain[before + 1 : at] if link.role is Role.NORM]
        mask = run.dead_units(chain[at].name) if run.dead_units is not None else None
        if mask is not None and mask.numel() == units_of(layer):
            dead = mask.nonzero().flatten().tolist()
            if not dead:
                return {}
            if len(dead) <= self.whole_layer * mask.numel():
                how |= {"units": dead, "next": _taking(chain, at, units_of(layer))}
        return {chain[before].name: how | {"norms": norms}}

    def measure(self, change: Change, run: Run) -> Change | None:
        """Scale hidden layers by what they put out for a kept batch, where the medic can take steps by itself."""
        hidden = [name for name, how in change.after.items() if how["draw"] in ("he", "xavier")][:-1]
        rehearsal = run.rehearsal
        if (
            rehearsal is None
            or not rehearsal.ready
            or len(hidden) < 2
            or any("units" in h for h in change.after.values())
        ):
            return change
        plan: Plan = {
            name: {**how, "draw": "orthonormal", "scale": 1.0} if name in hidden else dict(how)
            for name, how in change.after.items()
        }
        with rehearsal.quietly():
            self.apply(change.model_copy(update={"after": plan}), run)
            for name in hidden:
                plan[name]["scale"] = self._scale(name, run)
        return change.model_copy(update={"after": plan})

    def _scale(self, name: str, run: Run) -> float:
        """Scale the weights of a layer until what it puts out has a deviation of one; gives by how much."""
        import torch

        from trainmedic.remedies._layers import modules

        rehearsal, layer, scale = run.rehearsal, modules(run)[name], 1.0
        assert rehearsal is not None
        seen: list[float] = []
        handle = layer.register_forward_hook(lambda _, __, output: seen.append(float(output.detach().float().std())))
        try:
            for _ in range(self.tries):
                seen.clear()
                with torch.no_grad():
                    rehearsal.loss_of(rehearsal.examples[0])
                    if not seen or not 1e-12 < seen[0] < float("inf") or abs(seen[0] - 1) < self.off:
                        break
                    scale /= seen[0]
                    layer.weight.div_(seen[0])  # type: ignore[operator]
        finally:
            handle.remove()
        return scale

    def apply(self, change: Change, run: Run) -> Undo:
        import torch

        from trainmedic.remedies._drawing import Ledger
        from trainmedic.remedies._layers import modules
        from trainmedic.remedies._surgery import check_alone

        check_alone(run)
        live = modules(run)
        ledger = Ledger(run.optimizers)
        generator = torch.Generator().manual_seed(run.step)
        try:
            for name, how in change.after.items():
                _draw(name, how, live, ledger, generator)
        except BaseException:
            ledger.undo()
            raise
        return ledger.undo


def _all(finding: Finding, run: Run) -> Plan:
    """Every layer of the models that the finding names, or of all of them."""
    from trainmedic.remedies._drawing import drawable
    from trainmedic.remedies._layers import RECTIFIERS, Role, activation_after, chains

    plan: Plan = {}
    for chain in chains(run):
        prefix = chain[0].name.split(".")[0] + "."
        named = len(run.models) == 1 or not finding.where or any(name.startswith(prefix) for name in finding.where)
        named = named and not _shrinks(chain)
        for i, link in enumerate(chain if named else []):
            if link.role is Role.RECURRENT:
                plan[link.name] = {"draw": "orthogonal"}
            elif link.module is not None and _attends(link.module):
                plan[link.name] = {"draw": "attention"}
            elif link.role is Role.WEIGHTS and link.module is not None and drawable(link.module):
                plan[link.name] = {"draw": "he" if activation_after(chain, i) in RECTIFIERS else "xavier"}
    return plan


def _attends(module: "nn.Module") -> bool:
    from torch.nn import MultiheadAttention

    kinds = all(p.is_floating_point() and p.ndim in (1, 2, 3) for p in module.parameters())
    return isinstance(module, MultiheadAttention) and module.bias_k is None and kinds


def _shrinks(chain: "list[Link]") -> bool:
    """Whether a net shrinks signals whatever its weights: a sigmoid passes at most a quarter of a gradient on."""
    from trainmedic.remedies._layers import Role

    sigmoids = sum(link.activation == "sigmoid" for link in chain)
    return sigmoids > SIGMOIDS and not any(link.role is Role.NORM for link in chain)


def _taking(chain: "list[Link]", at: int, units: int) -> str | None:
    """The next layer after position ``at``, if it takes in just as many units."""
    from trainmedic.remedies._drawing import drawable, inputs_of
    from trainmedic.remedies._layers import Role

    link = next((link for link in chain[at + 1 :] if link.role not in (Role.PASSING, Role.NORM, Role.ACTIVATION)), None)
    if link is None or link.role is not Role.WEIGHTS or link.module is None:
        return None
    return link.name if drawable(link.module) and inputs_of(link.module) == units else None


def _draw(
    name: str, how: Mapping[str, Any], live: "Mapping[str, nn.Module]", ledger: "Ledger", generator: "torch.Generator"
) -> None:
    """Carry out the plan for one layer."""
    import torch

    from trainmedic.remedies import _drawing

    needed = [name, *how.get("norms", ()), *([how["next"]] if how.get("next") else [])]
    if missing := [each for each in needed if each not in live]:
        raise Refused(f"the model has no layer named {missing[0]!r} any more")
    if how["draw"] == "orthogonal":
        _drawing.redraw_recurrent(ledger, live[name], generator)
        return
    if how["draw"] == "attention":
        _drawing.redraw_attention(ledger, live[name], generator)
        return
    weight = live[name]._parameters["weight"]
    assert weight is not None
    units = torch.tensor(how["units"], device=weight.device) if how.get("units") else None
    _drawing.redraw_layer(ledger, live[name], how["draw"], generator, units, float(how.get("scale", 1.0)))
    for norm in how.get("norms", ()):
        _drawing.reset_norm(ledger, live[norm], units)
    if units is not None and how.get("next"):
        _drawing.silence_inputs(ledger, live[how["next"]], units)


def _summary(plan: Plan) -> str:
    def told(name: str, how: Mapping[str, Any]) -> str:
        return f"{len(how['units'])} dead units of {name}" if "units" in how else name

    shown = [told(name, how) for name, how in list(plan.items())[:4]]
    return "weights drawn anew: " + ", ".join(shown) + (f" and {len(plan) - 4} more" if len(plan) > 4 else "")


def _code(layer: str, how: Mapping[str, Any]) -> list[str]:
    """What a user would write to draw one layer."""
    if "units" in how:
        return [
            f"fresh = nn.init.kaiming_normal_(torch.empty_like({layer}.weight))",
            f"{layer}.weight.data[dead] = fresh[dead]  # dead: the {len(how['units'])} units that stay at zero",
        ]
    if how["draw"] == "orthogonal":
        return [f"nn.init.orthogonal_({layer}.weight_hh_l0)"]
    if how["draw"] == "attention":
        return [f"{layer}._reset_parameters()"]
    draw = 'kaiming_normal_({}, nonlinearity="relu")' if how["draw"] == "he" else "xavier_normal_({})"
    return [f"nn.init.{draw.format(f'{layer}.weight')}"]
