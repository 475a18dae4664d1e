"""What is left to people: concrete code for every illness, and nothing that anybody could apply."""

import pytest

from tests.remedies.patients import finding
from trainmedic.diagnose import Evidence
from trainmedic.diagnose.judge import catalogue
from trainmedic.history import History, Layer
from trainmedic.remedies.change import Safety
from trainmedic.remedies.choose import choose
from trainmedic.remedies.remedy import Refused, Remedy, pharmacy
from trainmedic.remedies.run import Run

MANUAL = [remedy for remedy in pharmacy() if remedy.safety is Safety.MANUAL]
WHERE = {"unnormalized-input": ("target/std",), "frozen-layer": ("reader",)}


def run() -> Run:
    layers = {
        "a.weight": Layer("a.weight", "parameter", 0, (4, 8)),
        "b.weight": Layer("b.weight", "parameter", 1, (2, 4)),
    }
    history = History.of(facts={"batch_size": 16, "loss_scaling": True, "devices": ["cuda:0"]})
    history.architecture = layers
    return Run([], [], history)


@pytest.mark.parametrize(
    ("remedy", "illness"), [(r, i) for r in MANUAL for i in r.treats], ids=lambda x: getattr(x, "name", x)
)
def test_it_gives_code_and_is_never_applied(remedy: type[Remedy], illness: str) -> None:
    ill = finding(illness, *WHERE.get(illness, ()))
    if (remedy.name, illness) == ("enlarge-batch", "batchnorm-misuse"):
        ill = ill.model_copy(update={"evidence": (Evidence(name="values per channel", value=2),)})
    change = remedy().propose(ill, run())
    assert change is not None
    assert change.summary
    assert not change.summary.endswith(".")
    compile(change.code, "code", "exec")
    with pytest.raises(Refused, match="left to people"):
        remedy().apply(change, run())


def test_advice_is_shown_and_never_a_candidate() -> None:
    ill = finding("data-starved", "time/data").model_copy(update={"remedies": ("add-loader-workers",)})
    sick = run()
    assert choose(ill, sick, fix="unsafe").candidates == []
    sick.advising = True
    assert [change.remedy for _, change in choose(ill, sick, fix="unsafe").candidates] == ["add-loader-workers"]


def test_every_illness_has_a_remedy() -> None:
    treated = {illness for remedy in pharmacy() for illness in remedy.treats}
    assert {rule.name for rule in catalogue()} <= treated


def test_rules_and_remedies_name_each_other() -> None:
    shelf = {remedy.name: remedy for remedy in pharmacy()}
    rules = {rule.name: rule for rule in catalogue()}
    for rule in rules.values():
        for name in rule.remedies:
            assert rule.name in shelf[name].treats, f"{rule.name} names {name}, which does not treat it"
    for remedy in shelf.values():
        for illness in remedy.treats:
            assert remedy.name in rules[illness].remedies, f"{illness} does not name {remedy.name}"


def test_what_is_left_to_people_comes_last() -> None:
    shelf = {remedy.name: remedy for remedy in pharmacy()}
    for rule in catalogue():
        manual = [shelf[name].safety is Safety.MANUAL for name in rule.remedies]
        assert manual == sorted(manual), rule.name
