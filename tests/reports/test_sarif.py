"""SARIF: valid by the official schema, complete in its rules, stable in its fingerprints."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from trainmedic.diagnose.judge import catalogue
from trainmedic.reports import sarif
from trainmedic.reports.report import Report

SCHEMA = json.loads(Path(__file__).with_name("sarif-2.1.0-rtm.5.json").read_text())


def rendered(*reports: Report, **options: Any) -> dict[str, Any]:
    content = json.loads(sarif.render(reports, **options))
    jsonschema.Draft4Validator(SCHEMA).validate(content)
    (run,) = content["runs"]
    assert isinstance(run, dict)
    return run


def test_the_schema_sees_mistakes(report: Report) -> None:
    content = json.loads(sarif.render([report]))
    content["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(SCHEMA).validate(content)


@pytest.mark.parametrize("which", ["report", "hostile_report", "calm_report"])
def test_it_is_valid_and_declares_every_rule(which: str, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(which)
    run = rendered(report)
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.code for rule in catalogue()]
    assert len(run["results"]) == len(report.findings)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] if "ruleIndex" in result else True
        text = result["message"]["text"]
        assert "\x1b" not in text
        assert "](" not in text


def test_a_finding_points_at_its_file_and_line(report: Report, tmp_path: Path) -> None:
    first = report.findings[0]
    placed = replace(report, path="logs/a b.csv#2", file="logs/a b.csv", lines={first.id: 17})
    location = rendered(placed, root=tmp_path)["results"][0]["locations"][0]["physicalLocation"]
    assert location == {"artifactLocation": {"uri": "logs/a%20b.csv"}, "region": {"startLine": 17}}
    for file, uri in (
        (str(tmp_path / "x.log"), "x.log"),
        ("/elsewhere/x.log", "file:///elsewhere/x.log"),
        ("s3://bucket/x.log", "s3://bucket/x.log"),
    ):
        result = rendered(replace(report, file=file), root=tmp_path)["results"][0]
        assert result["locations"][0]["physicalLocation"] == {
            "artifactLocation": {"uri": uri},
            "region": {"startLine": 1},
        }


def test_fingerprints_stay_while_a_log_grows_and_differ_between_findings(report: Report, tmp_path: Path) -> None:
    def fingerprints(*reports: Report) -> list[str]:
        results = rendered(*reports, root=tmp_path)["results"]
        return [result["partialFingerprints"]["trainmedic/v1"] for result in results]

    later = tuple(
        finding.model_copy(update={"step": finding.step + 3, "message": "other words"}) for finding in report.findings
    )
    before = fingerprints(report)
    assert fingerprints(replace(report, findings=later, lines={report.findings[0].id: 5})) == before
    twice = fingerprints(replace(report, findings=report.findings * 2), replace(report, path="another"))
    assert len(set(twice)) == 3 * len(report.findings)


def test_what_could_not_be_judged_is_told(calm_report: Report) -> None:
    (invocation,) = rendered(calm_report, unreadable=[("x.csv", "x.csv: empty\x1b")])["invocations"]
    assert invocation["executionSuccessful"] is False
    assert [told["message"]["text"] for told in invocation["toolExecutionNotifications"]] == ["x.csv: empty\\x1b"]


def test_more_results_than_are_taken_are_left_out_and_counted(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sarif, "MOST_RESULTS", 1)
    run = rendered(report, report)
    assert len(run["results"]) == 1
    assert "are left out" in run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
