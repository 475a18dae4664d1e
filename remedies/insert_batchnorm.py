"""Insert a batch norm before each activation, or after it where the model has its own there."""

import itertools
from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    from torch import nn

    from trainmedic.remedies._layers import Link


class InsertBatchnorm(Remedy):
    """Give each linear layer and convolution that feeds an activation a batch norm between the two.

    Where the model has norms of its own, more of them after activations than before, new ones come after as well: the
    next layer normalises what it takes. The model changes in place: the norm becomes the child `medic_norm` of a layer,
    all names and keys stay, new ones are added, and the norm's parameters join the optimizer's group that holds the
    layer's weight. Averages of the
    model (`AveragedModel`) get the same norms; where other copies of it are kept it is refused. States of the model
    saved before still load; states of the optimizer saved before do not, and `prescription.json` is needed to load a
    treated checkpoint into a fresh model.

    Safety: unsafe. It changes the architecture and what the model computes, at once.
    Works when: signals or gradients shrink or grow from layer to layer.
    Does not help: batches of a few samples; recurrent layers, and layers that run several times in one forward pass,
    whose calls would share one norm; a model that is normalised already.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    treats: ClassVar[tuple[str, ...]] = (
        "vanishing-gradient",
        "exploding-gradient",
        "bad-initialization",
        "saturated-activation",
        "unnormalized-input",
        "collapsed-output",
    )
    safety: ClassVar[Safety] = Safety.UNSAFE
    replayed: ClassVar[bool] = True
    least_layers: int = Field(2, ge=1, description="layers to norm below which there is nothing to gain")
    least_batch: int = Field(4, ge=2, description="samples in a batch below which its statistics are noise")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._layers import as_code
        from trainmedic.remedies._surgery import check_copies, check_models, check_optimizers

        if finding.name == "unnormalized-input" and not any(where.startswith("input/") for where in finding.where):
            return None  # targets are out of scale
        check_models(run)
        check_optimizers(run)
        layers = self._layers(run)
        check_copies(run)
        several = len(run.models) > 1
        lines = [
            f"{(code := as_code(name, several))} = nn.Sequential("
            + (f"nn.{kind}({units}), {code})" if taken else f"{code}, nn.{kind}({units}))")
            for name, (kind, units, taken) in layers.items()
        ]
        return Change(
            remedy=self.name,
            target=tuple(layers),
            after={
                name: {"norm": kind, "units": units, "before": taken} for name, (kind, units, taken) in layers.items()
            },
            summary=f"batch norm inserted {_where(layers)} {_listed(list(layers))}",
            code="# before the optimizer is made\n" + "\n".join(lines),
        )

    def _layers(self, run: Run) -> dict[str, tuple[str, int, bool]]:
        """Each layer to norm: the kind of its norm, of how many units, and whether it comes before the layer.

        Raises ``Refused`` where that cannot be.
        """
        from trainmedic.remedies._first import features_of
        from trainmedic.remedies._graft import plain
        from trainmedic.remedies._layers import Role, chains, units_of
        from trainmedic.remedies._surgery import NORM_OF, check_layer

        batch = run.history.facts.get("batch_size")
        if batch is not None and int(batch) < self.least_batch:
            raise Refused(f"batches of {batch} samples are too small to normalise over")
        found = chains(run)
        after = _norms_follow_activations(found)
        targets = [
            link for chain in found for link in (_after_activations if after else _before_activations)(chain, run)
        ]
        repeated = set(run.history.facts.get("called_repeatedly", ()))
        if several := [link.name for link in targets if link.name in repeated]:
            raise Refused(f"{several[0]} runs several times in one forward pass: its calls would share one norm")
        if not targets and any(link.role is Role.RECURRENT for chain in found for link in chain):
            raise Refused("the model is recurrent: a norm over batches would mix its time steps")
        if len(targets) < self.least_layers:
            raise Refused(
                f"{len(targets)} layer(s) feed an activation without a norm: at least {self.least_layers} needed"
            )
        places = _places(run)
        layers = {}
        for link in targets:
            assert link.module is not None
            check_layer(link.name, link.module, run, places=places[id(link.module.weight)])
            units = features_of(link.module) if after else units_of(link.module)
            layers[link.name] = NORM_OF[plain(type(link.module))].__name__, units, after
        return layers

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._first import features_of
        from trainmedic.remedies._layers import NORM, modules, units_of
        from trainmedic.remedies._surgery import (
            Normed,
            NormedInput,
            check_copies,
            check_layer,
            check_models,
            check_optimizers,
            graft_all,
            norm_for,
        )

        check_models(run)
        check_optimizers(run)
        if run.history.architecture:  # a run under way, not a fresh model that a prescription is replayed on
            check_copies(run)
        live, places = modules(run), _places(run)
        for name in change.target:
            layer = live.get(name)
            if layer is None or not _plain_layer(layer):
                raise Refused(f"there is no plain linear layer or convolution named {name!r}")
            units = features_of(layer) if change.after[name].get("before") else units_of(layer)
            if units != change.after[name]["units"]:
                raise Refused(f"{name} has {units} units, not {change.after[name]['units']}")
            check_layer(name, layer, run, places=places[id(layer.weight)])
        before = any(change.after[name].get("before") for name in change.target)  # all of them, or none
        mixin = NormedInput if before else Normed
        return graft_all(run, change.target, live, mixin, lambda layer: {NORM: norm_for(layer, before=before)})


def _before_activations(chain: "list[Link]", run: Run) -> "list[Link]":
    """Layers of one model between which and the activation after them a norm can stand; never its last layer.

    Activations that are functions are only known where they are rectifiers. In a plain chain without any known one,
    every layer but the last is taken to feed one.
    """
    from trainmedic.remedies._layers import Role, activation_after

    inner = [i for i, link in enumerate(chain) if link.role is Role.WEIGHTS][:-1]
    fed = {i: activation_after(chain, i) for i in inner}
    plain = not any(fed.values()) and all(link.role not in (Role.NORM, Role.RECURRENT, Role.OPAQUE) for link in chain)
    return [
        chain[i]
        for i in inner
        if (plain or fed[i] not in (None, "softmax", "log_softmax"))
        and not _normed_before_activation(chain, i)
        and _fits(chain[i], run)
    ]


def _norms_follow_activations(found: "list[list[Link]]") -> bool:
    """Whether the model's own norms stand after activations more often than before them."""
    from trainmedic.remedies._layers import Role

    steps = [(chain[i].role, chain[i + 1].role) for chain in found for i in range(len(chain) - 1)]
    return steps.count((Role.ACTIVATION, Role.NORM)) > steps.count((Role.NORM, Role.ACTIVATION))


def _after_activations(chain: "list[Link]", run: Run) -> "list[Link]":
    """Layers of one model that take what an activation puts out, with no norm in between."""
    from trainmedic.remedies._layers import Role

    weighty = [i for i, link in enumerate(chain) if link.role is Role.WEIGHTS]
    found = []
    for before, at in itertools.pairwise(weighty):
        roles = [link.role for link in chain[before + 1 : at]]
        if Role.ACTIVATION in roles and set(roles) <= {Role.ACTIVATION, Role.PASSING} and _fits(chain[at], run):
            found.append(chain[at])
    return found


def _normed_before_activation(chain: "list[Link]", at: int) -> bool:
    from trainmedic.remedies._layers import Role, until_weights

    roles = [link.role for link in until_weights(chain, at)]
    before = roles[: roles.index(Role.ACTIVATION)] if Role.ACTIVATION in roles else roles
    return Role.NORM in before


def _fits(link: "Link", run: Run) -> bool:
    """Whether a layer is of a kind that can be normed, trains, and is called as a module by what it is part of."""
    from torch import nn

    from trainmedic.remedies._layers import modules

    if link.module is None or not _plain_layer(link.module) or not link.module.weight.requires_grad:
        return False
    live, parts = modules(run), link.name.split(".")
    around = [live.get(".".join(parts[:n])) for n in range(1, len(parts))]
    return not any(isinstance(part, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) for part in around)


def _plain_layer(layer: "nn.Module") -> bool:
    """Whether a layer is of a kind that can be normed, and was not given a norm yet."""
    from trainmedic.remedies._graft import has_graft, plain
    from trainmedic.remedies._surgery import NORM_OF, Normed, NormedInput

    return plain(type(layer)) in NORM_OF and not (has_graft(layer, Normed) or has_graft(layer, NormedInput))


def _places(run: Run) -> Counter[int]:
    """In how many places of the models each weight stands."""
    return Counter(
        id(weight)
        for _, model in run.named_models()
        for _, module in model.named_modules(remove_duplicate=False)
        if (weight := module._parameters.get("weight")) is not None
    )


def _where(layers: dict[str, tuple[str, int, bool]]) -> str:
    return "before" if any(taken for _, _, taken in layers.values()) else "after"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
