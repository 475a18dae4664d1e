"""TM501 and its look-alikes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trainmedic
from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.overfitting import Overfitting
from trainmedic.history import History, Snapshot

SAMPLES = Path(__file__).parents[1] / "samples"
FALLING = list(np.geomspace(2.3, 0.01, 40))
TURNED = [*np.linspace(2.3, 1.0, 10), *np.linspace(1.02, 2.0, 30)]


def look(history: History) -> list[Finding]:
    return list(Overfitting().check(history))


def test_onset_is_the_best_evaluation() -> None:
    [finding] = look(History.of(train_loss=FALLING, validation_loss=TURNED))
    assert finding.step == 9
    assert 13 <= finding.detected_at <= 20
    assert (finding.where, finding.severity) == (("validation/loss",), Severity.ERROR)


def test_each_set_is_judged_by_itself() -> None:
    history = History.of(train_loss=FALLING, validation_loss=TURNED)
    history.add_series("validation/a/loss", range(40), TURNED)
    history.add_series("validation/b/loss", range(40), FALLING)
    assert [finding.where for finding in look(history)] == [("validation/loss",), ("validation/a/loss",)]


def test_a_real_classifier_overfits_on_all_its_six_sets() -> None:
    [history] = trainmedic.read(SAMPLES / "huggingface" / "trainer_state.json")
    found = look(history)
    assert [finding.where for finding in found] == [(f"validation/g{i}/loss",) for i in range(6)]
    assert {finding.step for finding in found} == {401, 802}  # after the first or the second of 30 epochs
    assert max(finding.detected_at for finding in found) <= 4010  # in the tenth


def test_four_epochs_are_too_few() -> None:
    [history] = trainmedic.read(SAMPLES / "keras-csv" / "log.csv")
    assert look(history) == []


def test_an_accuracy_that_still_improves_makes_it_a_warning() -> None:
    history = History.of(
        train_loss=FALLING, validation_loss=TURNED, validation_accuracy=list(np.linspace(0.1, 0.9, 40))
    )
    assert look(history)[0].severity == Severity.WARNING
    assert look(history)[0].message.endswith("although the accuracy is no worse")
    history.add_series("validation/accuracy", range(40), [*np.linspace(0.1, 0.6, 10), *np.linspace(0.6, 0.5, 30)])
    assert look(history)[0].severity == Severity.ERROR


def test_a_hundredth_given_back_is_healthy_where_the_accuracy_holds() -> None:
    losses = [*np.geomspace(2.3, 0.02, 10), *np.linspace(0.021, 0.05, 30)]
    history = History.of(train_loss=FALLING, validation_loss=losses, validation_accuracy=[0.99] * 40)
    assert look(history) == []


def test_twice_the_best_is_a_warning_where_no_accuracy_is_known() -> None:
    losses = [*np.geomspace(2.3, 0.02, 10), *np.linspace(0.021, 0.05, 30)]
    [finding] = look(History.of(train_loss=FALLING, validation_loss=losses))
    assert finding.severity == Severity.WARNING


@pytest.mark.parametrize("seed", range(10))
def test_noise_around_a_level_is_healthy(seed: int) -> None:
    random = np.random.default_rng(seed)
    level = np.concatenate([np.linspace(2.3, 1.0, 10), np.ones(90)])
    noisy = level + 0.1 * random.standard_normal(100)
    assert look(History.of(train_loss=np.geomspace(2.3, 0.01, 100), validation_loss=noisy)) == []


@pytest.mark.parametrize("seed", range(10))
def test_noise_on_a_falling_loss_is_healthy(seed: int) -> None:
    random = np.random.default_rng(seed)
    noisy = np.geomspace(2.3, 0.3, 60) * np.exp(0.2 * random.standard_normal(60))
    assert look(History.of(train_loss=np.geomspace(2.3, 0.01, 60), validation_loss=noisy)) == []


def test_a_steady_gap_is_healthy() -> None:
    assert look(History.of(train_loss=FALLING, validation_loss=[*np.linspace(2.3, 1.0, 10), *[1.0] * 30])) == []


def test_rising_together_is_not_overfitting() -> None:
    """A run that diverges, or a rate that is cycled."""
    assert look(History.of(train_loss=TURNED, validation_loss=TURNED)) == []


def test_a_training_loss_that_only_wanders_is_not_falling() -> None:
    random = np.random.default_rng(0)
    flat = 0.5 + 0.05 * random.standard_normal(400)
    history = History.of(train_loss=flat)
    history.add_series("validation/loss", range(0, 400, 10), TURNED)
    assert look(history) == []


def test_back_at_its_best_is_healthy() -> None:
    assert look(History.of(train_loss=FALLING, validation_loss=[*TURNED[:30], *np.linspace(1.6, 0.9, 10)])) == []


def test_a_rise_no_larger_than_one_that_the_run_came_back_from_is_healthy() -> None:
    """Warm restarts: each throws the validation loss up, and it comes back lower."""
    cycle = np.concatenate([np.linspace(1.0, 0.2, 30), np.linspace(0.25, 1.0, 10)])
    losses = np.concatenate([2 - np.linspace(0, 1, 10), cycle, 0.9 * cycle, 0.8 * cycle])
    train = np.geomspace(2.3, 0.01, len(losses))
    assert look(History.of(train_loss=train, validation_loss=losses, validation_accuracy=np.ones(len(losses)))) == []


def test_double_descent_is_judged_by_its_second_minimum() -> None:
    losses = [*np.linspace(2.3, 1.0, 10), *np.linspace(1.02, 1.6, 10), *np.linspace(1.5, 0.5, 10)]
    train = list(np.geomspace(2.3, 0.01, 60))
    assert look(History.of(train_loss=train, validation_loss=losses)) == []
    [finding] = look(History.of(train_loss=train, validation_loss=[*losses, *np.linspace(0.52, 1.5, 30)]))
    assert finding.step == 29


@pytest.mark.parametrize("count", range(5))
def test_few_evaluations_prove_nothing(count: int) -> None:
    losses = [1.0 + 0.5 * i for i in range(count)]
    assert look(History.of(train_loss=FALLING, validation_loss=losses)) == []


def test_four_that_rise_one_after_the_other_are_enough() -> None:
    history = History.of(train_loss=FALLING)
    history.add_series("validation/loss", range(7, 40, 8), [1.1, 1.5, 2.1, 2.6, 3.3])
    assert [finding.detected_at for finding in look(history)] == [39]


def test_what_jumped_up_and_stays_need_not_rise_any_further() -> None:
    losses = [1.5, 1.0, 0.6, 0.9, 1.0, 0.93, 0.99, 0.92, 0.98, 0.95, 0.91, 0.96]
    history = History.of(train_loss=FALLING)
    history.add_series("validation/loss", range(2, 38, 3), losses)
    assert [finding.step for finding in look(history)] == [8]


@pytest.mark.parametrize("percent", [1, 100])
def test_an_accuracy_alone_is_judged_by_its_errors(percent: int) -> None:
    turned = np.array([*np.linspace(0.1, 0.9, 10), *np.linspace(0.89, 0.7, 30)])
    history = History.of(train_loss=FALLING, validation_accuracy=list(turned * percent))
    [finding] = look(history)
    assert (finding.step, finding.where, finding.severity) == (9, ("validation/accuracy",), Severity.ERROR)
    steady = [*np.linspace(0.1, 0.9, 10), *(0.9 + 0.01 * np.sin(np.arange(30) * 2.4))]
    assert look(History.of(train_loss=FALLING, validation_accuracy=[percent * a for a in steady])) == []


def test_where_nearly_all_is_solved_only_the_accuracy_counts() -> None:
    losses = [*np.geomspace(0.7, 0.06, 10), *np.linspace(0.065, 0.18, 30)]
    history = History.of(
        train_loss=FALLING,
        validation_loss=losses,
        validation_accuracy=[*np.linspace(0.5, 0.97, 10), *[0.965, 0.97] * 15],
    )
    assert look(history) == []
    history.add_series("validation/accuracy", range(40), [*np.linspace(0.5, 0.97, 10), *np.linspace(0.97, 0.8, 30)])
    assert len(look(history)) == 1


def test_evaluations_that_are_not_finite_are_left_out() -> None:
    holes = [float("nan") if i % 7 == 3 else value for i, value in enumerate(TURNED)]
    [finding] = look(History.of(train_loss=FALLING, validation_loss=holes))
    assert finding.step == 9


def test_a_long_log_is_looked_at_in_few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    trend = Overfitting._trend
    monkeypatch.setattr(Overfitting, "_trend", lambda self, values, best: looked.append(1) or trend(self, values, best))
    random = np.random.default_rng(0)
    losses = np.concatenate([np.linspace(2, 1, 100), 1.5 + 0.05 * random.standard_normal(20_000)])
    assert not look(History.of(train_loss=np.linspace(2, 2.1, len(losses)), validation_loss=losses))
    assert 0 < len(looked) < 1_000


@pytest.mark.parametrize(("apart", "told"), [(0.5, True), (0.2, False)])
def test_what_is_learnt_by_heart_only_need_not_rise(apart: float, told: bool) -> None:
    facts = {"loss": "MSELoss", "reduction": "mean", "total_steps": 40}
    history = History.of(train_loss=list(np.geomspace(1.0, 1e-4, 40)), target_std=[1.0] * 40, facts=facts)
    history.add_series("validation/loss", range(3, 40, 4), [0.9, *(apart + 0.01 * (-1) ** np.arange(9))])
    assert bool(look(history)) == told
    history.add_series("validation/loss", range(3, 40, 4), np.geomspace(0.9, 0.4, 10))  # it comes down
    assert look(history) == []


@pytest.mark.parametrize(("validation", "told"), [(0.6, True), (0.9, False)])
def test_where_only_accuracies_are_known_they_tell_what_is_learnt_by_heart(validation: float, told: bool) -> None:
    history = History.of(
        train_loss=FALLING,
        train_accuracy=np.linspace(0.1, 3.0, 40).clip(0, 0.99),
        validation_accuracy=[*np.linspace(0.1, validation, 15), *[validation, validation + 0.004] * 12, validation],
        facts={"loss": "CrossEntropyLoss", "classes": 10, "total_steps": 40},
    )
    for step in range(40):
        history.record(Snapshot(step, layers={"label_share": {str(i): 0.1 for i in range(10)}}))
    assert [finding.severity for finding in look(history)] == [Severity.WARNING] * told


def test_training_that_is_through_with_its_samples_need_not_fall_any_more() -> None:
    validation = [*np.linspace(2.0, 0.8, 10), *np.linspace(0.82, 1.3, 30)]
    through, far = ([*np.geomspace(2.3, low, 10), *[low] * 30] for low in (0.2, 0.6))
    assert look(History.of(train_loss=through, validation_loss=validation))
    assert not look(History.of(train_loss=far, validation_loss=validation))


def _by_heart(shared: float, *, known: bool = True, **more: Any) -> History:
    """Training falls from 2.3 to 0.4; in the second half validation wins this share of what training does."""
    training = np.linspace(2.3, 0.4, 60)
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "total_steps": 60}
    validation = np.where(training > 1.35, training + 0.1, 1.45 - shared * (1.35 - training))
    return History.of(
        train_loss=training, validation_loss=validation, facts=facts if known else {"total_steps": 60}, **more
    )


@pytest.mark.parametrize(("shared", "told"), [(0.0, True), (0.1, True), (0.4, False)])
def test_what_training_wins_alone_is_learnt_by_heart(shared: float, told: bool) -> None:
    assert [finding.severity for finding in look(_by_heart(shared))] == [Severity.WARNING] * told


def test_it_is_seen_soon_after_validation_has_stopped() -> None:
    [finding] = look(_by_heart(0.0))
    assert finding.detected_at <= 50


def test_an_accuracy_that_goes_on_rising_is_learnt_for_all_samples() -> None:
    assert look(_by_heart(0.0, validation_accuracy=np.linspace(0.1, 0.8, 60))) == []


def test_of_a_loss_of_unknown_make_more_has_to_be_by_heart() -> None:
    history = _by_heart(0.0, known=False)
    assert look(history) == []
    history.add_series("validation/loss", range(60), 0.5 + history.series("validation/loss").values)
    assert [finding.severity for finding in look(history)] == [Severity.WARNING]


def test_one_evaluation_that_is_off_says_nothing() -> None:
    training = [1.72, 1.33, 1.07, 0.79, 0.48, 0.38]
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "total_steps": 8}
    assert (
        look(History.of(train_loss=training, validation_loss=[1.88, 1.47, 1.09, 1.06, 0.78, 1.99], facts=facts)) == []
    )


def test_rare_classes_may_count_for_more_than_their_share() -> None:
    columns: dict[str, Any] = {"0__label_share": [0.9] * 60, "1__label_share": [0.1] * 60}
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 2, "total_steps": 60}
    training = np.geomspace(0.69, 0.01, 60)
    history = History.of(train_loss=training, validation_loss=np.maximum(training, 0.15), facts=facts, **columns)
    assert look(history) == []  # 46 % of the entropy of the labels, a fifth of that of two classes
    history.add_series("validation/loss", range(60), np.maximum(training, 0.4))
    assert look(history)


def test_a_training_that_is_thrown_back_itself_does_not_win_alone() -> None:
    """At the edge of stability, in full batches: the loss of a step is that of before it, validation of after it."""
    training = [*np.linspace(1.57, 0.90, 16), 1.08, 1.36, 1.73]
    validation = [*np.linspace(1.39, 0.91, 15), 1.10, 1.36, 1.83, 1.37]
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 4, "total_steps": 250}
    history = History.of(train_loss=training, validation_loss=validation, facts=facts)
    assert list(Overfitting().check(history)) == []
