"""Exchange hidden activations for ones that let gradients through."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import BY_STEPS
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    from torch import nn

    from trainmedic.remedies._layers import Link

BOUNDED = ("sigmoid", "tanh", "hardsigmoid", "hardtanh")


class ReplaceActivation(Remedy):
    """Hidden sigmoids and tanhs, and rectifiers that die, become leaky rectifiers.

    The activation's own module changes its class in place: it keeps its name, its hooks and its place, and whoever
    holds it goes on holding it. Only what lies between two layers with weights is exchanged, never the last activation
    of a model, nor a gate (one whose output another branch is multiplied by has fewer places than what follows). For
    dead units those of the finding, for the rest all that are of that kind.

    Safety: unsafe. It changes what the model computes, at once.
    Works when: a deep net of sigmoids or tanhs learns nothing; rectifiers die and come back dead.
    Does not help: activations that are called as functions (F.relu), which only the code can change; a rate that is too
    high for any activation; models that were trained with what they have.
    Source: Maas et al. 2013, "Rectifier nonlinearities improve neural network acoustic models" (slope 0.01); Glorot et
    al. 2011, "Deep sparse rectifier neural networks".
    """

    treats: ClassVar[tuple[str, ...]] = ("dead-relu", "saturated-activation", "vanishing-gradient")
    safety: ClassVar[Safety] = Safety.UNSAFE
    replayed: ClassVar[bool] = True
    slope: float = Field(0.01, gt=0, lt=1, description="of the leaky rectifier below zero")

    @classmethod
    def waits(cls, finding: Finding, run: Run) -> bool:
        return finding.name in BY_STEPS and finding.step > 1  # what steps have done, steps of that size will do again

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._layers import as_code
        from trainmedic.remedies._surgery import check_models

        check_models(run)
        hidden = _hidden(run)
        kinds = ("relu",) if finding.name == "dead-relu" else BOUNDED
        found = [link for link in hidden if link.activation in kinds]
        if finding.name == "dead-relu":
            found = [link for link in found if link.name in finding.where]
        names = list(dict.fromkeys(link.name for link in found if link.module is not None))
        functions = [link.name for link in found if link.module is None]
        if functions and not names:
            raise Refused(f"{functions[0]} is called as a function, which only the code can change")
        if not names:
            return None
        several = len(run.models) > 1
        return Change(
            remedy=self.name,
            target=tuple(names),
            after={"slope": self.slope},
            summary=f"{len(names)} activations replaced by leaky rectifiers, from {names[0]} on",
            code="\n".join(f"{as_code(name, several)} = nn.LeakyReLU({self.slope:g})" for name in names),
        )

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._layers import modules
        from trainmedic.remedies._surgery import averaged_copies, check_models

        check_models(run)
        live, slope = modules(run), float(change.after["slope"])
        if missing := [name for name in change.target if name not in live]:
            raise Refused(f"the model has no activation named {missing[0]!r}")
        exchanged = [live[name] for name in change.target]
        for _, model in run.named_models():
            paths = [path for path, module in model.named_modules() if any(module is each for each in exchanged)]
            twins = [copy.module.get_submodule(path) for copy in averaged_copies(model) for path in paths]
            exchanged += [twin for twin in twins if _replacement_of(twin) is not None]
        if plain := next((m for m in exchanged if _replacement_of(m) is None), None):
            raise Refused(f"{type(plain).__name__} is no activation that can be replaced")
        kept = [(module, type(module), dict(vars(module))) for module in exchanged]

        def undo() -> None:
            for module, kind, values in kept:
                module.__class__ = kind
                for key in [key for key in vars(module) if key not in values]:
                    del vars(module)[key]
                vars(module).update({key: value for key, value in values.items() if not key.startswith("_")})

        try:
            for module in exchanged:
                _exchange(module, slope)
        except BaseException:
            undo()
            raise
        return undo


def _exchange(module: "nn.Module", slope: float) -> None:
    """Make one activation a leaky rectifier."""
    from torch import nn

    module.__class__ = nn.LeakyReLU
    vars(module)["negative_slope"] = slope
    vars(module).setdefault("inplace", False)


def _replacement_of(module: "nn.Module") -> "type[nn.Module] | None":
    from torch import nn

    plain = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardtanh)
    return nn.LeakyReLU if type(module) in plain else None


def _hidden(run: Run) -> "list[Link]":
    """Activations that a layer with weights feeds and the next one takes, with as many units and places."""
    from trainmedic.remedies._layers import Role, chains

    found = []
    for chain in chains(run):
        at = [i for i, link in enumerate(chain) if link.role in (Role.WEIGHTS, Role.RECURRENT, Role.OPAQUE)]
        for i, link in enumerate(chain):
            inside = bool(at) and at[0] < i < at[-1]
            known = link.module is None or _replacement_of(link.module) is not None
            if link.role is Role.ACTIVATION and inside and known and not _gates(chain, i, run):
                found.append(link)
    return found


def _gates(chain: "list[Link]", at: int, run: Run) -> bool:
    """Whether what comes next takes more places than the activation puts out: it scales another branch."""
    shapes = run.history.architecture
    own: Any = shapes.get(chain[at].name)
    following = next((shapes.get(link.name) for link in chain[at + 1 :] if link.name in shapes), None)
    if own is None or following is None or chain[at].activation not in BOUNDED:
        return False
    return len(own.shape) > 1 and max(own.shape[1:]) == 1 and len(following.shape) > 1 and max(following.shape[1:]) > 1
