"""TM802 and its look-alikes."""

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.hidden_non_finite import HiddenNonFinite
from trainmedic.history import History

NAN, INF = float("nan"), float("inf")


def look(history: History) -> list[Finding]:
    return list(HiddenNonFinite().check(history))


def test_a_trainer_that_filters_shows_in_its_first_row() -> None:
    """As in Hugging Face's log: one row every 500 steps, the norm NaN beside a loss of 0."""
    history = History.of(steps=[500, 1000, 1500], train_loss=[2.1, 1.9, 0.0], gradient_norm=[1.0, 1.1, NAN])
    [finding] = look(history)
    assert (finding.step, finding.detected_at) == (1500, 1500)
    assert finding.message == "the log shows a loss of 0 at step 1500, where gradient/norm is not finite"


def test_an_average_that_stands_still_takes_three_rows() -> None:
    assert look(History.of(train_loss=[2.0] * 7, gradient_norm=[1.0] * 5 + [NAN] * 2)) == []
    [finding] = look(History.of(train_loss=[2.0] * 8, gradient_norm=[1.0] * 5 + [NAN] * 3))
    assert (finding.step, finding.detected_at) == (5, 7)


def test_a_loss_that_is_left_out() -> None:
    [finding] = look(History.of(train_loss=[2.0] * 12, weight__weight_nonfinite=[0.0] * 12 + [1.0] * 4))
    assert (finding.step, finding.detected_at) == (12, 14)
    assert finding.message.startswith("no loss is logged at step 12")


def test_honest_logs_hide_nothing() -> None:
    norms = [1.0] * 5 + [NAN] * 7
    assert look(History.of(train_loss=[2.0] * 6 + [NAN] * 6, gradient_norm=norms)) == []
    assert look(History.of(train_loss=[2.0] * 8 + [INF] * 4, gradient_norm=norms)) == []


def test_who_logs_nothing_hides_nothing() -> None:
    assert look(History.of(train_loss=[2.0, 1.9], gradient_nonfinite=[0.0] * 20 + [1.0] * 5)) == []


def test_a_mask_of_minus_infinity_is_no_witness() -> None:
    assert look(History.of(train_loss=[2.0] * 9, gradient_norm=[1.0] * 9, mask__activation_nonfinite=[1.0] * 9)) == []


def test_a_loss_that_is_zero_by_nature_needs_patience() -> None:
    assert look(History.of(train_loss=[0.0] * 5, gradient_norm=[1.0] * 3 + [NAN] * 2)) == []


def test_rejected_steps_do_not_count() -> None:
    skipped = [1.0] * 6 + [0.0] * 6
    history = History.of(train_loss=[2.0] * 12, gradient_norm=[INF] * 6 + [1.0] * 6, optimizer_skipped=skipped)
    assert look(history) == []
