"""TM201 and its look-alikes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.vanishing_gradient import VanishingGradient
from trainmedic.history import History, Layer

STILL = [2.3] * 100


def net(
    loss: Sequence[float],
    norm: Callable[[int, int], float],
    *,
    depth: int = 8,
    kinds: dict[int, str] | None = None,
    **layer: Any,
) -> History:
    """A net of equal layers; ``norm(layer, step)`` is the norm of a weight's gradient."""
    options = {"kind": "parameter", "shape": (8, 8), **layer}
    layers = [Layer(f"fc{i}.weight", order=i, **options) for i in range(depth)]
    layers += [Layer(f"fc{i}", kind, i) for i, kind in (kinds or {}).items()]
    columns: dict[str, Any] = {
        f"fc{i}.weight__gradient_norm": [norm(i, step) for step in range(len(loss))] for i in range(depth)
    }
    return History.of(train_loss=loss, layers=layers, **columns)


def look(history: History) -> list[Finding]:
    return list(VanishingGradient().check(history))


def test_names_the_first_layers_the_weakest_first() -> None:
    [finding] = look(net(STILL, lambda i, step: 10.0 ** (i - 8)))
    assert finding.where == ("fc0.weight", "fc1.weight")
    assert (finding.step, finding.detected_at) == (0, 25)


def test_sizes_of_layers_do_not_matter() -> None:
    """Per element the gradients are equal; the norms differ by the square root of the number of elements."""
    shapes = [(10**i, 10) for i in range(7)]
    layers = [Layer(f"fc{i}.weight", "parameter", i, shape) for i, shape in enumerate(shapes)]
    columns: dict[str, Any] = {
        f"fc{i}.weight__gradient_norm": [float(np.prod(s)) ** 0.5] * 100 for i, s in enumerate(shapes)
    }
    assert look(History.of(train_loss=STILL, layers=layers, **columns)) == []


def test_onset_is_where_the_gradients_died() -> None:
    history = net(STILL, lambda i, step: 10.0 ** (i - 8) if step >= 60 else 1.0)
    [finding] = look(history)
    assert (finding.step, finding.detected_at) == (60, 69)


@pytest.mark.parametrize("ratio", [1.0, 10.0, 100.0, 1000.0])
def test_ordinary_ratios_of_deep_nets_are_healthy_even_if_the_run_stands_still(ratio: float) -> None:
    assert look(net(STILL, lambda i, step: ratio ** (i / 7))) == []


def test_what_learns_is_healthy() -> None:
    assert look(net(list(np.geomspace(2.3, 0.1, 100)), lambda i, step: 10.0 ** (i - 8))) == []


def test_a_run_that_stood_still_and_then_learnt_is_healthy() -> None:
    loss = [2.3] * 100 + list(np.linspace(2.3, 0.5, 100))
    assert look(net(loss, lambda i, step: 10.0 ** (i - 8))) == []


def test_gradients_that_came_back_are_healthy() -> None:
    assert look(net([2.3] * 200, lambda i, step: 10.0 ** (i - 8) if step < 100 else 1.0)) == []


def test_converged_is_healthy() -> None:
    """All gradients are as good as zero, in the first layers first."""
    loss = list(np.geomspace(2.3, 1e-6, 100))
    assert look(net(loss, lambda i, step: 10.0 ** ((i - 8) * step / 100))) == []


def test_an_ordinary_start_may_stand_still() -> None:
    assert look(net([2.3] * 25, lambda i, step: 10.0 ** (i - 8))) == []


@pytest.mark.parametrize(
    "layer",
    [{"trainable": False}, {"shape": (64,)}, {"shape": ()}],
    ids=["frozen", "biases", "scalars"],
)
def test_only_trained_matrices_count(layer: dict[str, Any]) -> None:
    assert look(net(STILL, lambda i, step: 10.0 ** (i - 8), **layer)) == []


def test_embeddings_do_not_count() -> None:
    tiny = {0: "Embedding", 1: "EmbeddingBag"}
    assert look(net(STILL, lambda i, step: 1e-9 if i < 2 else 1.0, kinds=tiny)) == []


def test_layers_that_are_cut_off_are_not_vanishing() -> None:
    assert look(net(STILL, lambda i, step: 0.0 if i < 3 else 1.0)) == []


def test_shallow_nets_are_not_judged() -> None:
    assert look(net(STILL, lambda i, step: 10.0 ** (4 * i - 8), depth=3)) == []


def test_a_batch_now_and_then_is_not_persistent() -> None:
    assert look(net(STILL, lambda i, step: 10.0 ** (i - 8) if step % 10 < 5 else 1.0)) == []


def test_several_models_are_judged_apart() -> None:
    """The second model's gradients are small as a whole: that is no loss within one model."""
    layers = [Layer(f"{m}.fc{i}.weight", "parameter", 4 * m + i, (8, 8)) for m in (0, 1) for i in range(4)]
    columns: dict[str, Any] = {
        f"{m}.fc{i}.weight__gradient_norm": [1.0 if m else 1e-6] * 100 for m in (0, 1) for i in range(4)
    }
    history = History.of(train_loss=STILL, layers=layers, facts={"models": 2}, **columns)
    assert look(history) == []


def test_weights_drawn_too_small_show_in_the_biases() -> None:
    """Signal and error shrink in opposite directions: gradients of the weights are equal, those of the biases not."""
    layers = [Layer(f"fc{i}.{part}", "parameter", i, shape) for i in range(6) for part, shape in SMALL]
    columns: dict[str, Any] = {f"fc{i}.weight__gradient_norm": [1e-8] * 100 for i in range(6)}
    columns |= {f"fc{i}.bias__gradient_norm": [10.0 ** (2 * i - 10)] * 100 for i in range(6)}
    [finding] = look(History.of(train_loss=STILL, layers=layers, **columns))
    assert finding.where == ("fc0.weight",)


SMALL = (("weight", (8, 8)), ("bias", (8,)))


def test_biases_that_a_norm_takes_out_do_not_count() -> None:
    """Before a batch norm a bias has no effect, and no gradient but for rounding."""
    layers = [Layer(f"fc{i}.{part}", "parameter", i, shape) for i in range(6) for part, shape in SMALL]
    columns: dict[str, Any] = {f"fc{i}.weight__gradient_norm": [1.0] * 100 for i in range(6)}
    columns |= {f"fc{i}.bias__gradient_norm": [1e-9 if i < 5 else 0.3] * 100 for i in range(6)}
    assert look(History.of(train_loss=STILL, layers=layers, **columns)) == []


def test_a_last_layer_that_began_at_zero_heals() -> None:
    """Below a last layer of zeros nothing arrives at first; it grows with each small step."""
    assert look(net([2.3] * 300, lambda i, step: 1.0 if i > 5 else 1e-6 * (step + 1))) == []


def test_to_come_down_to_chance_is_to_learn_nothing() -> None:
    loss = list(np.geomspace(6.0, 2.31, 20)) + [2.31] * 60
    history = net(loss, lambda i, step: 10.0 ** (i - 8))
    assert look(history) == []
    history.facts.update(loss="CrossEntropyLoss", reduction="mean", classes=10)
    assert len(look(history)) == 1


def test_a_layer_without_a_gradient_hides_no_others() -> None:
    [finding] = look(net(STILL, lambda i, step: 0.0 if i == 4 else 10.0 ** (i - 8)))
    assert finding.where[0] == "fc0.weight"


def test_a_regression_that_has_learnt_the_mean_stands_still() -> None:
    """Most of the loss of targets that are not centred goes with the last bias alone."""
    loss = [*np.linspace(100.0, 25.0, 50), *[25.0] * 150]
    [finding] = look(net(loss, lambda i, step: 10.0 ** (i - 8)))
    assert 100 <= finding.detected_at <= 125
    assert look(net(loss, lambda i, step: 10.0 ** (i - 8) if step < 120 else 1.0)) == []
    assert look(net([*loss[:60], *np.geomspace(25.0, 10.0, 140)], lambda i, step: 10.0 ** (i - 8))) == []


def test_what_has_converged_may_be_flat() -> None:
    loss = [*np.geomspace(2.3, 0.1, 50), *[0.1] * 150]
    assert look(net(loss, lambda i, step: 10.0 ** (i - 8))) == []


def test_the_ends_of_deep_nets_are_compared() -> None:
    """The deeper a net, the more is lost within its quarters."""
    assert len(look(net(STILL, lambda i, step: 10.0 ** (i / 4.2), depth=16))) == 1


def recurrent(kind: str, length: int, losses: Sequence[float]) -> History:
    """A recurrent layer of 32 units as torch draws it, over so many steps, and a layer on top."""
    layers = [Layer("r", kind, 0, (length, 32)), Layer("r.weight_hh_l0", "parameter", 0, (32, 32))]
    layers += [Layer("o", "Linear", 1, (4,)), Layer("o.weight", "parameter", 1, (4, 32))]
    columns: dict[str, Any] = {f"{name}.weight_hh_l0__weight_std": [0.102] * len(losses) for name in "r"}
    columns |= {f"{name}__gradient_norm": [0.1] * len(losses) for name in ("r.weight_hh_l0", "o.weight")}
    return History.of(train_loss=list(losses), layers=layers, **columns)


def test_nothing_comes_back_through_forty_steps() -> None:
    [finding] = VanishingGradient().check(recurrent("RNN", 40, [1.39] * 150))
    assert finding.where == ("r.weight_hh_l0",)
    assert finding.message.startswith("r keeps 0.58 of a gradient per step back in time, 4.9e-10 over all 40")


@pytest.mark.parametrize(
    ("kind", "length", "losses"),
    [
        ("RNN", 8, [1.39] * 150),  # short enough
        ("LSTM", 40, [1.39] * 150),  # made for it
        ("RNN", 40, np.linspace(1.39, 0.5, 150)),  # what is asked for is near the end
        ("RNN", 40, [1.39] * 60),  # too early to tell
    ],
)
def test_recurrent_layers_that_are_in_order(kind: str, length: int, losses: Sequence[float]) -> None:
    assert list(VanishingGradient().check(recurrent(kind, length, losses))) == []


def test_a_constant_is_not_learnt_and_half_a_run_lost_is_told() -> None:
    """A regression that has found the mean of its targets, long before its first layers come alive."""
    losses = [0.3 * 0.8**i + 0.08 for i in range(40)] + [0.08] * 110 + list(np.linspace(0.08, 0.07, 50))
    history = net(losses, lambda i, step: 10.0 ** (i - 8) if step < 150 else 1.0)
    history.facts.update(loss="MSELoss", reduction="mean")
    history.add_series("output/batch_std", range(200), [1e-6] * 150 + [0.05] * 50)
    history.add_series("target/std", range(200), [0.37] * 200)
    [finding] = VanishingGradient().check(history)
    assert finding.detected_at <= 100
