"""What holds for every rule: it finds its own sick examples, and leaves everybody's healthy ones in peace."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainmedic.diagnose import Finding, Root, Rule, Severity
from trainmedic.diagnose import rules as rules_package
from trainmedic.diagnose.judge import catalogue
from trainmedic.diagnose.rule import HEADINGS
from trainmedic.history import SERIES, STATISTICS, History, Layer, Snapshot

RULES = catalogue()
EVERY = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, -1e300, 3e38, float("nan"), float("inf"), float("-inf")]


def findings(rule: type[Rule], history: History) -> list[Finding]:
    """What a rule says of a history, nothing where it cannot judge it; a warning of numpy's is an error here."""
    one = rule()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return list(one.check(history)) if one.unmet(history) is None else []


def found_in_sick(rule: type[Rule]) -> list[tuple[History, Finding]]:
    """What a rule says of its own sick examples, each finding beside its history."""
    return [(history, finding) for history in rule.sick for finding in findings(rule, history)]


def written(found: list[Finding]) -> list[str]:
    """Findings in a form that can be compared: a NaN in the evidence is equal to itself there."""
    return [finding.model_dump_json() for finding in found]


def until(history: History, step: int) -> History:
    """A history as it was right after a step."""
    part = copy.deepcopy(history)
    part.drop_after(step)
    return part


# -- sick and healthy ------------------------------------------------------------------------------------------------


@EVERY
def test_finds_its_own_sick(rule: type[Rule]) -> None:
    for history in rule.sick:
        assert {finding.code for finding in findings(rule, history)} == {rule.code}


@EVERY
def test_everybody_is_silent_on_its_healthy(rule: type[Rule]) -> None:
    for i, history in enumerate(rule.healthy):
        assert [(i, finding) for other in RULES for finding in findings(other, history)] == []


@EVERY
def test_has_several_examples(rule: type[Rule]) -> None:
    assert len(rule.sick) >= 1
    assert len(rule.healthy) >= 3


@EVERY
def test_detection_uses_only_the_past(rule: type[Rule]) -> None:
    for history, finding in found_in_sick(rule):
        assert finding.step <= finding.detected_at <= history.last_step
        same = [other.step for other in findings(rule, until(history, finding.detected_at)) if other.key == finding.key]
        assert same == [finding.step]
        earlier = findings(rule, until(history, finding.detected_at - 1))
        assert [other for other in earlier if other.key == finding.key] == []


@EVERY
def test_saying_is_pure_and_survives_saving(rule: type[Rule], tmp_path: Path) -> None:
    for history in rule.sick:
        before = written(findings(rule, history))
        assert written(findings(rule, history)) == before
        history.save(tmp_path / "history.npz")
        assert written(findings(rule, History.load(tmp_path / "history.npz"))) == before


@EVERY
def test_steps_may_start_anywhere(rule: type[Rule]) -> None:
    for history in rule.sick:
        moved = copy.deepcopy(history)
        for rows in moved._all():
            rows._steps += 1_000_000
        expected = [(finding.step + 1_000_000, finding.detected_at + 1_000_000) for finding in findings(rule, history)]
        assert [(finding.step, finding.detected_at) for finding in findings(rule, moved)] == expected


# -- what is told ----------------------------------------------------------------------------------------------------


@EVERY
def test_findings_are_complete(rule: type[Rule]) -> None:
    for _, finding in found_in_sick(rule):
        assert finding.name == rule.name
        assert finding.where
        assert finding.evidence
        assert finding.advice
        assert finding.remedies == rule.remedies
        assert "\n" not in finding.message
        assert not finding.message.endswith(".")
        assert not any(len(word.strip("-")) > 12 and word.strip("-.").isdigit() for word in finding.message.split())
        assert written([Finding.model_validate_json(finding.model_dump_json())]) == written([finding])


@EVERY
def test_docstring_has_every_heading(rule: type[Rule]) -> None:
    told = rule.sections()
    assert set(told) == {"What it is", *HEADINGS}
    for remedy in rule.remedies:
        assert remedy in told["Remedies"]
    assert "`" in told["Formula"], "the formula names its thresholds"


@EVERY
def test_every_threshold_is_told_in_the_formula_or_the_limits(rule: type[Rule]) -> None:
    told = rule.sections()
    for name in rule.model_fields:
        assert f"`{name}`" in told["Formula"] + told["Known limits"] or name in ("recent", "window", "smooth"), name


@EVERY
def test_every_threshold_has_default_bounds_and_description(rule: type[Rule]) -> None:
    for name, field in rule.model_fields.items():
        assert not field.is_required(), name
        assert field.metadata, f"{name} has no bounds"
        assert field.description, name
        assert "(" in field.description or ", " in field.description, f"{name}: unit or reason is missing"


@EVERY
def test_advice_goes_from_the_usual_to_the_checks(rule: type[Rule]) -> None:
    parts = ("Usually means", "Do this:", "Otherwise check (a)", "(b)", "(c)")
    places = [rule.advice.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


@EVERY
def test_class_facts(rule: type[Rule]) -> None:
    assert isinstance(rule.root, Root)
    assert isinstance(rule.severity, Severity)
    assert rule.needs
    known = {*SERIES, *STATISTICS}
    assert {name for need in rule.needs for name in need.split("|")} <= known
    assert set(rule.explains) <= {other.name for other in RULES} - {rule.name}


def test_no_rule_explains_itself_in_a_circle() -> None:
    explains = {rule.name: set(rule.explains) for rule in RULES}
    reached = copy.deepcopy(explains)
    for _ in RULES:
        reached = {name: below.union(*(explains[other] for other in below)) for name, below in reached.items()}
    assert [name for name, below in reached.items() if name in below] == []


def test_codes_are_unique() -> None:
    codes = [rule.code for rule in RULES]
    assert sorted(set(codes)) == codes


def test_one_file_is_one_rule_of_the_same_name() -> None:
    files = {path.stem for path in Path(rules_package.__path__[0]).glob("*.py")} - {"__init__"}
    assert {rule.name.replace("-", "_") for rule in RULES} == files
    assert all(rule.__module__.endswith("." + rule.name.replace("-", "_")) for rule in RULES)


def test_importing_the_rules_imports_neither_torch_nor_scipy() -> None:
    code = "import sys, trainmedic.diagnose.judge as j; j.catalogue(); print({'torch', 'scipy'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


# -- whatever comes in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10, 200])
@pytest.mark.parametrize("value", SPECIAL, ids=repr)
def test_constant_histories_never_raise(value: float, length: int) -> None:
    history = History()
    for name in (*SERIES, "validation/accuracy", "validation/a/loss"):
        history.add_series(name, range(length), [value] * length)
    for step in range(length):
        history.record(Snapshot(step, layers={statistic: {"a": value, "b": value} for statistic in STATISTICS}))
    found = [finding for rule in RULES for finding in findings(rule, history)]
    if np.isfinite(value):
        assert [f for f in found if f.name not in ("dead-relu", "non-finite")] == []


@EVERY
def test_an_empty_history_cannot_be_judged(rule: type[Rule]) -> None:
    assert rule().unmet(History())


VALUES = st.one_of(st.floats(width=32), st.sampled_from(SPECIAL), st.floats(-10, 10))
COLUMNS = st.lists(VALUES, min_size=1, max_size=60)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Any series and tables, of any length, at any steps, of layers that may be unknown."""
    names = (*SERIES, "validation/accuracy", "validation/x/loss", "train/accuracy")
    history = History(bounded=draw(st.booleans()))
    for name in draw(st.lists(st.sampled_from(names), unique=True, min_size=1)):
        column = draw(COLUMNS)
        steps = sorted(draw(st.lists(st.integers(0, 100), min_size=len(column), max_size=len(column))))
        history.add_series(name, steps, column)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers = ["a.weight", "b.weight", "c.weight", "d.weight", "d", "e"]
    for i, layer in enumerate(layers):
        if draw(st.booleans()):
            shape = draw(st.sampled_from([(), (0,), (4,), (4, 4), (2, 3, 3)]))
            kind = "parameter" if "." in layer else "ReLU"
            history.architecture[layer] = Layer(layer, kind, draw(st.integers(-1, i)), shape, draw(st.booleans()))
    for statistic in draw(st.lists(st.sampled_from(sorted(STATISTICS)), unique=True)):
        for step in range(draw(st.integers(0, 25))):
            values = random.choice([*SPECIAL, *random.standard_normal(10)], len(layers))
            chosen = random.permutation(len(layers))[: random.integers(1, len(layers) + 1)]
            row = {layers[i]: float(values[i]) for i in chosen}
            history.record(Snapshot(step, layers={statistic: row}))
    facts = st.fixed_dictionaries({}, optional={"loss_scaling": st.booleans(), "models": st.integers(1, 3)})
    history.facts.update(draw(facts))
    return history


@given(history=histories())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_random_histories_never_raise(history: History) -> None:
    for finding in (finding for rule in RULES for finding in findings(rule, history)):
        assert finding.step <= finding.detected_at
        assert Finding.model_validate_json(finding.model_dump_json()).key == finding.key


@pytest.mark.parametrize("seed", range(5))
def test_silent_on_noise(seed: int) -> None:
    """White noise around a level, a random walk of the gradient, accuracies by chance: nothing is wrong with that."""
    random = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"fc{i}.weight__gradient_norm": np.exp(random.standard_normal(600)) for i in range(8)}
    history = History.of(
        train_loss=2.3 + 0.2 * random.standard_normal(600),
        gradient_norm=np.exp(np.cumsum(0.05 * random.standard_normal(600))),
        **columns,
        layers=[Layer(f"fc{i}.weight", "parameter", i, (8, 8)) for i in range(8)],
    )
    history.add_series("validation/loss", range(0, 600, 5), 2.3 + 0.2 * random.standard_normal(120))
    assert [finding for rule in RULES for finding in findings(rule, history)] == []
