"""The report and its JSON: valid whatever the numbers, complete, and readable again."""

import json
import math
from collections.abc import Iterator
from importlib.resources import files
from typing import ClassVar

import jsonschema
import numpy as np
import pytest

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.history import History
from trainmedic.reports.report import Report, document, dumps, plain

SCHEMA = json.loads(files("trainmedic.reports").joinpath("trainmedic.schema.json").read_text())


class AlwaysThere(Rule):
    """Finds the last loss, whatever it is."""

    code: ClassVar[str] = "TM999"
    root: ClassVar[Root] = Root.OUTCOME
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    advice: ClassVar[str] = "nothing"

    def check(self, history: History) -> Iterator[Finding]:
        steps, values = history.series("train/loss")
        evidence = Evidence(name="loss", value=float(values[-1]), limit=0.0)
        yield self.finding(
            step=steps[0], detected_at=steps[-1], where=["train/loss"], message="there is a loss", evidence=[evidence]
        )


def refuse(token: str) -> None:
    raise AssertionError(f"{token} is not JSON")


def strictly(text: str) -> dict[str, object]:
    """Parse as any other tool would: bare NaN and Infinity are errors."""
    content = json.loads(text, parse_constant=refuse)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("which", ["report", "hostile_report", "calm_report"])
def test_json_is_valid_and_fits_its_schema(which: str, request: pytest.FixtureRequest) -> None:
    content = strictly(request.getfixturevalue(which).to_json())
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)


def test_the_schema_sees_mistakes(report: Report) -> None:
    for spoil in ("severity", "step", "evidence"):
        content = report.to_dict()
        content["runs"][0]["findings"][0][spoil] = "wrong"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content, SCHEMA)
    jsonschema.validate({**report.to_dict(), "new": 1}, SCHEMA)  # readers ignore what they do not know


def test_json_holds_what_was_found(report: Report) -> None:
    (run,) = strictly(report.to_json())["runs"]  # type: ignore[misc]
    first, second = run["findings"]
    assert (first["code"], first["step"], first["severity"]) == ("TM202", 41, "error")
    assert first["evidence"][0] == {"name": "gradient norm", "value": "Infinity", "limit": 1000.0, "unit": ""}
    assert first["evidence"][1]["value"] == "NaN"
    assert second["explained_by"] == "f1"
    assert run["treatments"][0]["control"][0]["value"] == "NaN"
    assert run["treatments"][0]["change"]["after"] == {"max_norm": "Infinity", "of": ["NaN", 1]}
    assert run["first_step"] == 0
    assert run["last_step"] == 2
    assert run["not_checked"][0] == {
        "code": "TM301",
        "name": "dead-relu",
        "reason": "no activations in this history",
    }


def test_json_is_ascii_so_that_nothing_reaches_a_terminal_through_it(hostile_report: Report) -> None:
    text = hostile_report.to_json()
    assert all(character == "\n" or " " <= character <= "~" for character in text)


def test_a_report_is_read_back_from_its_json(report: Report) -> None:
    (run,) = json.loads(report.to_json())["runs"]
    back = Report.from_dict({**run, "a new field": 1}, report.history)
    assert back.run_dict() == report.run_dict()
    assert math.isnan(back.findings[0].evidence[1].value)


@pytest.mark.parametrize(
    "run",
    [
        {"findings": [{}]},
        {"findings": 5},
        {"cost": []},
        {"cost": {"steps": "x"}},
        {"not_checked": [1]},
        {"advised": [{}]},
    ],
)
def test_a_malformed_report_is_one_clear_error(run: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's texts differ between versions
        Report.from_dict(run, History())


def test_from_history_judges() -> None:
    report = Report.from_history(History.of(train_loss=[1.0, math.nan]), [AlwaysThere()], path="x", format="csv")
    assert [finding.code for finding in report.findings] == ["TM999"]
    assert report.checked == ("TM999",)
    assert report.severity == Severity.WARNING
    nothing = Report.from_history(History.of(a_b=[1.0]), [AlwaysThere()])
    assert [entry.reason for entry in nothing.not_checked] == ["no train/loss in this history"]
    assert nothing.severity is None


def test_roots_and_what_they_explain(report: Report) -> None:
    assert [finding.id for finding in report.roots] == ["f1"]
    assert [finding.id for finding in report.explained_by(report.findings[0])] == ["f2"]


def test_several_runs_and_what_could_not_be_read(report: Report, calm_report: Report) -> None:
    content = strictly(dumps(document([report, calm_report], [("a.bin", "no reader knows it")])))
    jsonschema.validate(content, SCHEMA)
    assert content["unreadable"] == [{"path": "a.bin", "reason": "no reader knows it"}]


def test_plain_takes_anything() -> None:
    assert plain({1: np.float64("nan"), "a": np.arange(2), "b": (Severity.INFO, object)}) == {
        "1": "NaN",
        "a": [0, 1],
        "b": ["info", "<class 'object'>"],
    }
