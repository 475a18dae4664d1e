"""TM101: where it began, and what is none of its business."""

import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.non_finite import NonFinite
from trainmedic.history import History, Layer

NAN, INF = float("nan"), float("inf")
SCALERLESS = {"loss_scaling": False}
LAYERS = [Layer("first", "Linear", 0), Layer("second", "Linear", 1), Layer("third", "Linear", 2)]


def look(history: History) -> list[Finding]:
    return list(NonFinite().check(history))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("at", [0, 1, 30])
def test_the_loss_is_told_at_once(value: float, at: int) -> None:
    [finding] = look(History.of(train_loss=[1.0] * at + [value]))
    assert (finding.step, finding.detected_at, finding.where) == (at, at, ("train/loss",))
    assert finding.severity == Severity.ERROR


def test_a_gradient_is_told_at_once_where_no_scaler_is_in_use() -> None:
    [finding] = look(History.of(gradient_norm=[1.0, NAN], train_loss=[1.0, 1.0], facts=SCALERLESS))
    assert (finding.step, finding.message) == (1, "the gradient norm is not finite at step 1")


def test_outputs_name_the_first_layer_in_the_order_of_execution() -> None:
    [finding] = look(
        History.of(
            third__activation_nonfinite=[0, 1],
            second__activation_nonfinite=[0, 1],
            first__activation_nonfinite=[0, 0],
            train_loss=[1.0, NAN],
            layers=LAYERS,
        )
    )
    assert finding.where == ("second", "third")
    assert finding.message == "the output of second is not finite at step 1"


def test_gradients_name_the_last_layer_in_the_order_of_execution() -> None:
    [finding] = look(
        History.of(
            first__gradient_nonfinite=[0, 1],
            second__gradient_nonfinite=[0, 1],
            third__gradient_nonfinite=[0, 0],
            gradient_nonfinite=[0, 2],
            train_loss=[1.0, 1.0],
            layers=LAYERS,
            facts=SCALERLESS,
        )
    )
    assert finding.where == ("second", "first")
    assert finding.message == "the gradient of second is not finite at step 1"


def test_a_loss_of_the_same_step_comes_before_the_gradients_that_it_spoilt() -> None:
    history = History.of(gradient_nonfinite=[0, 3], train_loss=[1.0, NAN], facts=SCALERLESS)
    assert look(history)[0].where == ("train/loss",)


def test_weights_alone() -> None:
    [finding] = look(History.of(first__weight_nonfinite=[0, 1], second__weight_nonfinite=[0, 0], layers=LAYERS))
    assert (finding.step, finding.where, finding.severity) == (1, ("first",), Severity.ERROR)


def test_skips_of_the_loss_scaler_are_its_search() -> None:
    assert look(History.of(gradient_nonfinite=[9, 9, 9, 9, 0], optimizer_skipped=[1, 1, 1, 1, 0])) == []


def test_a_gradient_that_got_past_the_scaler_is_told() -> None:
    [finding] = look(History.of(gradient_nonfinite=[9, 9, 0, 9], optimizer_skipped=[1, 1, 0, 0]))
    assert finding.step == 3


def test_a_loss_that_is_bad_in_every_rejected_step_is_told_in_the_end() -> None:
    assert look(History.of(train_loss=[1.0] + [NAN] * 9, optimizer_skipped=[0] + [1] * 9)) == []
    [finding] = look(History.of(train_loss=[1.0] + [NAN] * 10, optimizer_skipped=[0] + [1] * 10))
    assert finding.severity == Severity.ERROR


def test_where_a_scaler_may_be_in_use_a_few_infinite_gradients_are_its_search() -> None:
    assert look(History.of(gradient_norm=[INF, INF, 1.0, INF, 1.0])) == []
    [finding] = look(History.of(gradient_norm=[1.0, INF, INF, INF]))
    assert finding.step == 3


def test_a_run_that_came_through_is_a_warning() -> None:
    [finding] = look(History.of(train_loss=[1.0, NAN] + [1.0] * 10))
    assert finding.severity == Severity.WARNING
    assert finding.message.endswith("; the run came through unharmed")
    assert look(History.of(train_loss=[1.0, NAN] + [1.0] * 9))[0].severity == Severity.ERROR


def test_spoilt_weights_are_never_unharmed() -> None:
    history = History.of(train_loss=[1.0, NAN] + [1.0] * 20, first__weight_nonfinite=[0] * 5 + [1] * 17)
    assert look(history)[0].severity == Severity.ERROR


def test_infinities_by_design_are_not_the_origin_of_a_later_fault() -> None:
    [finding] = look(
        History.of(
            first__activation_nonfinite=[1] * 6,
            second__activation_nonfinite=[0] * 5 + [1],
            train_loss=[1.0] * 5 + [NAN],
            layers=LAYERS,
        )
    )
    assert finding.where == ("second",)


def test_a_validation_loss_alone_is_a_broken_evaluation() -> None:
    [finding] = look(History.of(train_loss=[1.0] * 5, validation_loss=[1.0, NAN]))
    assert (finding.where, finding.severity) == (("validation/loss",), Severity.WARNING)


def test_large_and_tiny_numbers_are_numbers() -> None:
    assert look(History.of(train_loss=[1e300, 1e-300, 0.0, -1e300], gradient_norm=[1e38, 0.0, 1.0, 1.0])) == []
