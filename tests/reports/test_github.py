"""Annotations of GitHub Actions: within its limits, and nothing in a log can be a command."""

import re
from dataclasses import replace

import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.reports import github
from trainmedic.reports.report import Report

COMMAND = re.compile(r"::(error|warning|notice) title=([^,]*),file=([^,]*),line=(\d+)::(.*)")


def commands(text: str) -> list[tuple[str, ...]]:
    """Level, title, file, line and text of each line, which must all be commands."""
    found = [COMMAND.fullmatch(line) for line in text.splitlines()]
    assert None not in found
    return [match.groups() for match in found if match]


def finding(code: str, severity: Severity, step: int = 3, message: str = "seen") -> Finding:
    return Finding(
        id=f"{code}-{step}",
        code=code,
        name="an-illness",
        severity=severity,
        step=step,
        detected_at=step + 1,
        message=message,
    )


def many(report: Report, codes: int, times: int) -> Report:
    levels = list(Severity)
    findings = [finding(f"TM{900 + code}", levels[code % 3], step) for code in range(codes) for step in range(times)]
    return replace(report, findings=tuple(findings), path="logs/run.csv", file="logs/run.csv")


def test_one_annotation_a_rule_and_at_most_ten_of_a_level(report: Report) -> None:
    told = commands(github.render([many(report, 45, 8)], [("a.csv", "a.csv: broken"), ("b.csv", "b.csv: broken")]))
    for level in ("error", "warning", "notice"):
        assert sum(command[0] == level for command in told) == 10
    assert told[0][1:3] == ("could not be judged", "a.csv")
    assert told[0][4] == "a.csv: broken (and 1 other)"
    assert told[1][1].endswith("an-illness (8 times)")
    assert told[1][4].count("%0A") == 1 + github.PLACES


def test_it_points_at_the_line_of_onset(report: Report) -> None:
    one = replace(many(report, 1, 1), lines={"TM900-0": 12})
    assert commands(github.render([one]))[0][2:4] == ("logs/run.csv", "12")
    assert commands(github.render([replace(one, lines={})]))[0][3] == "1"


@pytest.mark.parametrize("hostile", ["a\n::error::b", "a,line=9::c", "100%0Aof it", "\x1b[31m<b>", "%25"])
def test_no_text_becomes_a_command(report: Report, hostile: str) -> None:
    spoilt = replace(report, findings=(finding("TM900", Severity.ERROR, message=hostile),), path=hostile, file=hostile)
    ((level, _, file, line, text),) = commands(github.render([spoilt], []))
    assert (level, line) == ("error", "1")
    assert "\x1b" not in text
    assert "%2C" in file if "," in hostile else True
    if "%" in hostile:
        assert text.startswith(hostile.replace("%", "%25"))


def test_the_summary_has_every_finding_and_stays_within_its_room(report: Report, hostile_report: Report) -> None:
    whole = github.summary([many(report, 45, 8)], [("a.csv", "a.csv: `broken`")])
    assert whole.startswith("### trainmedic: 1 run of 1 with findings\n")
    assert whole.count("\n| error |") + whole.count("\n| warning |") + whole.count("\n| info |") == 45 * 8
    assert "* a.csv: \\`broken\\`\n" in whole
    for room in (0, 50, 300, 2_000, 10_000):
        part = github.summary([many(report, 45, 8)], room=room)
        assert len(part.encode()) <= room
        if room >= 2_000:
            assert re.search(r"\nand \d+ lines more\n$", part)
    hostile = github.summary([hostile_report])
    assert "<script" not in hostile
    assert "\x1b" not in hostile
