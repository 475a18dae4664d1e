"""Give recurrent layers without gates some, and let those with gates remember."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainmedic.remedies._drawing import Ledger


class ReplaceRecurrent(Remedy):
    """An RNN becomes a GRU in place; an LSTM gets a forget gate that is open.

    The weights of the RNN stay where they are, under their names, and make the candidate of the GRU; its gates are new
    parameters of the layer, `medic_gates`, which join the group of its weights. Their biases are one, so that the state
    is carried along at first. It is a GRU and not an LSTM since that one hands over two states where the code takes
    one. Of an LSTM whose forget gates have a bias below `forget_bias` it is set to that.

    Safety: unsafe. It changes what the model computes, at once.
    Works when: gradients vanish or explode over the steps of a sequence.
    Does not help: sequences of some hundred steps and more, which even gates forget; a loss that only the last step has
    no use for.
    Source: Cho et al. 2014, arXiv:1406.1078 (GRU); Jozefowicz et al. 2015, "An empirical exploration of recurrent
    network architectures" (forget-gate bias of 1); Pascanu et al. 2013, arXiv:1211.5063.
    """

    treats: ClassVar[tuple[str, ...]] = ("vanishing-gradient", "exploding-gradient", "not-learning", "plateau")
    safety: ClassVar[Safety] = Safety.UNSAFE
    replayed: ClassVar[bool] = True
    forget_bias: float = Field(1.0, gt=0, description="bias of the forget gates of an LSTM")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._layers import as_code
        from trainmedic.remedies._surgery import check_copies, check_models, check_optimizers

        kinds = {name: self._kind(module) for name, module in run.modules()}
        kinds = {name: kind for name, kind in kinds.items() if kind is not None}
        if not kinds:
            return None
        check_models(run)
        if "gates" in kinds.values():
            check_optimizers(run)
            check_copies(run)
        several = len(run.models) > 1
        lines = [_line(as_code(name, several), module) for name, module in run.modules() if name in kinds]
        plain = [name for name, kind in kinds.items() if kind == "gates"]
        return Change(
            remedy=self.name,
            target=tuple(kinds),
            after=kinds,
            summary=f"recurrent layer {', '.join(plain[:3])} made a GRU"
            if plain
            else f"forget gates of {next(iter(kinds))} opened",
            code="\n".join(lines),
        )

    def _kind(self, module: "nn.Module") -> str | None:
        """``gates`` for a layer that needs some, ``forget`` for one that forgets, ``None`` for others."""
        import torch
        from torch import nn

        if type(module) in (nn.RNN, nn.RNNCell):
            return "gates"
        if type(module) in (nn.LSTM, nn.LSTMCell) and (slices := _forget(module)):
            total = torch.stack([s.detach().mean() for s in slices]).sum() / (len(slices) / 2)
            return "forget" if float(total) < 0.5 * self.forget_bias else None
        return None

    def apply(self, change: Change, run: Run) -> Undo:
        import torch
        from torch import nn

        from trainmedic.remedies._drawing import Ledger
        from trainmedic.remedies._layers import modules
        from trainmedic.remedies._recurrent import GATES, GatedCell, GatedRNN, gates_for
        from trainmedic.remedies._surgery import check_copies, check_models, check_optimizers, graft_all

        check_models(run)
        live = modules(run)
        if wrong := [name for name in change.target if not isinstance(live.get(name), nn.RNNBase | nn.RNNCellBase)]:
            raise Refused(f"there is no recurrent layer named {wrong[0]!r}")
        gated = [name for name in change.target if change.after[name] == "gates"]
        if gated:
            check_optimizers(run)
            if run.history.architecture:  # a run under way, not a fresh model that a prescription is replayed on
                check_copies(run)
        generator = torch.Generator().manual_seed(run.step % 2**31)
        ledger = Ledger(run.optimizers)
        undos: list[Undo] = [ledger.undo]

        def undo() -> None:
            while undos:
                undos.pop()()

        try:
            for cell, mixin in ((False, GatedRNN), (True, GatedCell)):
                names = [name for name in gated if isinstance(live[name], nn.RNNCellBase) is cell]
                parts = lambda layer: {GATES: gates_for(layer, generator)}  # noqa: E731
                undos.append(graft_all(run, names, live, mixin, parts))
            for name in [name for name in change.target if change.after[name] == "forget"]:
                self._open(ledger, live[name])
        except BaseException:
            undo()
            raise
        return undo

    def _open(self, ledger: "Ledger", layer: "nn.Module") -> None:
        """Set the forget gates of an LSTM, one half of its two biases to the value, the other to zero."""
        size = int(layer.hidden_size)  # type: ignore[arg-type]
        at = slice(size, 2 * size)
        for name, parameter in layer.named_parameters(recurse=False):
            if name.startswith("bias"):
                ledger.write(parameter, at, self.forget_bias if name.startswith("bias_ih") else 0.0)
                ledger.forget(parameter, at)


def _forget(layer: "nn.Module") -> "list[torch.Tensor]":
    """The biases of an LSTM's forget gates: torch orders gates input, forget, cell, output."""
    size = int(layer.hidden_size)  # type: ignore[arg-type]
    return [p[size : 2 * size] for name, p in layer.named_parameters(recurse=False) if name.startswith("bias")]


def _line(code: str, module: Any) -> str:
    """What a user would write."""
    kind, size = type(module).__name__, module.hidden_size
    cell = kind.endswith("Cell")
    if kind.startswith("LSTM"):
        return f"{code}.bias_ih{'' if cell else '_l0'}.data[{size} : {2 * size}] = 1.0"
    if cell:
        return f"{code} = nn.GRUCell({module.input_size}, {size})"
    options = (
        f", num_layers={module.num_layers}, batch_first={module.batch_first}, bidirectional={module.bidirectional}"
    )
    return f"{code} = nn.GRU({module.input_size}, {size}{options})"
