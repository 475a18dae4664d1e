"""The clinic is complete and consistent, its halves have nothing in common, and a handful of patients really run."""

import math

import pytest
import torch

from tests.patients.illnesses import ACTS, ILLNESSES, WITHOUT_PATIENTS
from tests.patients.patient import SPLITS, Patient, clinic
from tests.patients.training import Data, Missing, Outcome, Training, accumulating_step, logged_once, train
from trainmedic.diagnose.judge import catalogue
from trainmedic.remedies.remedy import Safety, pharmacy

PATIENTS = list(clinic().values())
SICK, HEALTHY = [p for p in PATIENTS if not p.healthy], [p for p in PATIENTS if p.healthy]
QUICK = (
    "tuned-raw-measures",
    "tuned-steps-start-again",
    "tuned-filtered-loss",
    "seen-raw-wines",
    "seen-uncentred-targets",
)
WITHOUT_RULES = {"ignore": [rule.code for rule in catalogue()]}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(patient: Patient, *, sick: bool = True) -> Training:
    try:
        return patient.build(sick=sick)
    except Missing as error:
        pytest.skip(str(error))


def briefly(name: str, *, sick: bool = True, watched: bool = False) -> Outcome:
    """The first epochs of a patient's training, with no rules: they have tests of their own."""
    training = built(clinic()[name], sick=sick)
    training.epochs = min(training.epochs, 4)
    return train(training, watched=watched, **({"settings": WITHOUT_RULES} if watched else {}))


def test_there_are_enough() -> None:
    assert len(SICK) >= 50
    assert len(HEALTHY) >= 40


@pytest.mark.parametrize("kind", [SICK, HEALTHY], ids=["sick", "healthy"])
def test_half_of_each_kind_is_apart(kind: list[Patient]) -> None:
    """Beside those that rules were tuned on; what was seen after three evaluations comes on top."""
    apart, tuned = (sum(patient.split == split for patient in kind) for split in ("apart", "tuned"))
    assert 0.4 <= apart / (apart + tuned) <= 0.6


@pytest.mark.parametrize("what", ["data", "family"])
def test_the_half_apart_has_nothing_in_common_with_the_others(what: str) -> None:
    apart, known = ({getattr(p, what) for p in PATIENTS if (p.split == "apart") is of} for of in (True, False))
    assert apart & known <= {"gan"}  # two optimizers that fight: one kind of training, two architectures


@pytest.mark.parametrize("code", [code for code in ILLNESSES if code not in WITHOUT_PATIENTS])
def test_every_illness_has_patients_in_every_split(code: str) -> None:
    own = [p for p in SICK if p.illness == code]
    assert {p.split for p in own} == set(SPLITS)
    assert len({p.family for p in own}) >= 2


def test_labels_are_known_names() -> None:
    for p in PATIENTS:
        named = ({p.illness} if p.illness else set()) | p.also | p.symptoms
        assert named <= set(ILLNESSES), p.name
        assert set(p.cures) <= ACTS, p.name
        assert p.illness not in p.also | p.symptoms, p.name
        assert not p.also & p.symptoms, p.name


def test_names_are_those_of_rules_and_acts_that_are_written() -> None:
    assert {rule.code: rule.name for rule in catalogue()}.items() <= ILLNESSES.items()
    assert {remedy.name for remedy in pharmacy() if remedy.safety != Safety.MANUAL} <= ACTS


def test_nobody_is_labelled_healthy_and_treated() -> None:
    assert [p.name for p in HEALTHY if p.cures or p.also or p.symptoms] == []


@pytest.mark.parametrize("name", QUICK)
def test_a_patient_runs_watched_and_the_medic_leaves_its_numbers_alone(name: str) -> None:
    watched, bare = briefly(name, watched=True), briefly(name)
    assert watched.score == bare.score
    assert watched.steps == bare.steps
    assert watched.report.history.names()


@pytest.mark.parametrize("name", [name for name in QUICK if not clinic()[name].healthy])
def test_the_same_seed_gives_the_same_twin(name: str) -> None:
    twin = briefly(name, sick=False)
    assert briefly(name, sick=False).score == twin.score
    assert briefly(name).score != twin.score


def test_what_a_repair_needs_is_there() -> None:
    training = built(clinic()["tuned-raw-measures"])
    assert {"loss_fn", "val_loader", "total_steps"} <= training.watch_arguments().keys()
    assert sum(len(x) for x, _ in training.val_loader) == len(training.data.val_x)
    assert training.steps == training.epochs * len(training.loader)


def test_accumulation_steps_once_for_its_batches() -> None:
    model = torch.nn.Linear(3, 2)
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    training = Training(model, torch.optim.SGD(model.parameters(), lr=0.1), Data(x, y, x, y), batch=4, parts=2)
    before = model.weight.detach().clone()
    accumulating_step(training, (x, y))
    assert torch.equal(model.weight, before)
    accumulating_step(training, (x, y))
    assert not torch.equal(model.weight, before)


def test_steps_logged_twice_or_never_do_not_count() -> None:
    model = torch.nn.Linear(3, 2)
    x = torch.zeros(8, 3)
    training = Training(model, torch.optim.SGD(model.parameters(), lr=0.1), Data(x, x, x, x), batch=4)
    training.notes.update(steps=4, logged=[0, 1, 1, 7])
    assert math.isclose(logged_once(training), 0.25)
