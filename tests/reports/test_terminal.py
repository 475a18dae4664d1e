"""The terminal report: the verdict first, everything in it, and no text of a log that does more than stand there."""

import dataclasses
import math
import re

import numpy as np
import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.judge import catalogue
from trainmedic.history import History
from trainmedic.reports.report import Report
from trainmedic.reports.sparkline import sparkline
from trainmedic.reports.terminal import render
from trainmedic.reports.verdict import verdict
from trainmedic.reports.wording import advice_parts, measured, number, share


def test_a_sick_run_shows_verdict_evidence_advice_and_what_it_explains(report: Report) -> None:
    text = report.to_text()
    lines = text.splitlines()
    assert lines[0].startswith("runs/fc1  steps 0 to 2")
    assert lines[1] == "1 thing wrong: TM202 exploding-gradient since step 41 (1 more finding explained by it)"
    assert "error TM202 exploding-gradient  since step 41, evident at step 57, confidence 90 %" in text
    assert "evidence  gradient norm inf (limit 1,000)\n            loss NaN nats\n" in text
    assert "fc1.0, fc1.1, fc1.2 and 7 more" in text
    assert "lower the learning rate; else look at fc1" in text
    assert "explains  TM101 non-finite since step 66: the loss is NaN from step 66 on" in text


def test_treatments_advice_and_what_was_not_done(report: Report) -> None:
    text = report.to_text()
    assert "step 60  clip-gradients for TM202 exploding-gradient: kept at step 120 (sequential trial)" in text
    assert "train/loss before NaN, followed by 0.25" in text
    assert "helped" not in text
    assert "    torch.nn.utils.clip_grad_norm_(\n        model.parameters(), 1.0)\n" in text
    assert "insert-batchnorm: the model is compiled" in text
    assert "not checked: 2 of 4 rules\n  no activations: TM301, TM302\n" in text
    assert "writing stopped: OSError: No space left on device" in text
    assert "812 of 900 steps measured, watching cost 0.8 % of the time" in text


def test_very_long_code_is_cut_and_says_where_all_of_it_is(report: Report) -> None:
    change = report.advised[0][1].model_copy(update={"code": "\n".join(f"line({i})" for i in range(100))})
    text = dataclasses.replace(report, advised=(("f1", change),)).to_text()
    assert "    line(9)\n    # and 90 lines more (all of them: --format json)\n" in text


def test_a_healthy_run_is_calm_and_says_what_was_checked(calm_report: Report) -> None:
    lines = calm_report.to_text(width=200).splitlines()
    assert lines[1].startswith(
        "nothing wrong found: 2 rules checked over 3 steps, 3 of 3 steps measured, watching cost"
    )
    assert len(lines) == 3


def test_a_record_that_no_rule_could_judge_is_not_called_healthy() -> None:
    text = Report(History.of(a_b=[1.0])).to_text()
    assert "could not judge" in text
    assert "nothing wrong" not in text


def test_plain_by_default_and_coloured_when_asked(report: Report) -> None:
    assert "\x1b" not in report.to_text()
    coloured = report.to_text(color=True)
    assert "\x1b[1;31m" in coloured
    without = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in without.splitlines()] == report.to_text().splitlines()


@pytest.mark.parametrize("color", [False, True])
def test_hostile_names_only_stand_there(hostile_report: Report, color: bool) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", hostile_report.to_text(width=400, color=color)) if color else ""
    text = text or hostile_report.to_text(width=400)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert "<script>alert(1)</script>[red]x[/red]\\x1b[31mRED\\x07 **bold**" in text
    assert "\\u202e\\n# head" in text


@pytest.mark.parametrize("width", [1, 40, 80, 200])
def test_lines_fit_the_terminal_except_code(calm_report: Report, report: Report, width: int) -> None:
    for one in (calm_report, dataclasses.replace(report, advised=())):
        assert max(map(len, one.to_text(width=width).splitlines())) <= max(width, 40) + 1


def test_fifty_findings_stay_readable(report: Report) -> None:
    many = tuple(
        Finding(
            id=f"f{i}",
            code="TM402",
            name="loss-spike",
            severity=Severity.WARNING,
            step=i,
            detected_at=i,
            message=f"spike {i}",
            advice="wait",
        )
        for i in range(50)
    )
    text = dataclasses.replace(report, findings=many).to_text()
    assert "TM402 loss-spike since step 0 (50 times)" in text
    assert text.count("wait") == 1
    assert text.count("\n") < 50
    assert "also      since step 1: spike 1\n            since step 2: spike 2\n" in text
    assert "and 37 more" in text


def test_many_illnesses_are_shown_the_first_in_full(report: Report) -> None:
    several = tuple(
        report.findings[0].model_copy(
            update={"id": f"f{i}", "code": f"TM{i}", "where": tuple(f"layer{j}" for j in range(500))}
        )
        for i in range(100, 150)
    )
    text = dataclasses.replace(report, findings=several, advised=()).to_text()
    assert text.count("evidence  ") == 3
    assert text.count("error TM1") == 50
    assert text.count("\n") < 170


def test_what_is_explained_takes_one_line_however_long_it_is(report: Report) -> None:
    root, symptom = report.findings
    long = symptom.model_copy(update={"message": "very long " * 50})
    text = dataclasses.replace(report, findings=(root, long), advised=()).to_text(width=80)
    (line,) = [line for line in text.splitlines() if "very long" in line]
    assert line.startswith("  explains  TM101 non-finite since step 66: very long")
    assert line.endswith("…")
    assert len(line) <= 80


def test_advice_is_taken_apart(report: Report) -> None:
    advice = (
        "Usually means that x is y. Do this: f(x). Otherwise check (a) one: g(x); (b) two, in (c) brackets; (c) three."
    )
    finding = report.findings[0].model_copy(update={"advice": advice})
    text = dataclasses.replace(report, findings=(finding,)).to_text()
    assert "cause     usually: x is y\n  do        f(x)\n  else      (a) one: g(x)\n            (b) two, in" in text


def test_every_rule_gives_advice_in_that_form() -> None:
    for rule in catalogue():
        cause, act, checks = advice_parts(rule.advice)
        assert cause, rule.code
        assert act, rule.code
        assert [check[:3] for check in checks] == ["(a)", "(b)", "(c)"][: len(checks)], rule.code
        assert len(checks) >= 2, rule.code
        assert len(rule.advice) < 700, rule.code


def test_of_several_runs_each_has_a_line_and_the_sick_follow_in_full(report: Report, calm_report: Report) -> None:
    text = render(report, calm_report)
    lines = text.splitlines()
    assert lines[0] == "error      runs/fc1: TM202 exploding-gradient since step 41"
    assert lines[1] == "fine       runs/calm"
    assert text.count("runs/calm") == 1
    assert "evidence  gradient norm inf" in text


def test_findings_that_explain_each_other_in_a_circle_end(report: Report) -> None:
    first, second = report.findings
    circle = (first.model_copy(update={"explained_by": "f2"}), second)
    assert dataclasses.replace(report, findings=circle).to_text()


def test_sparkline_shows_the_course_and_what_is_not_finite() -> None:
    assert sparkline(np.array([0.0, 1.0])) == "▁█"
    assert sparkline(np.array([1.0, 1.0, math.nan])) == "▁▁×"
    assert sparkline(np.array([math.inf])) == "×"
    assert len(sparkline(np.arange(1e5), width=40)) == 40
    spike = np.zeros(10_000)
    spike[5_000] = 9
    assert "█" in sparkline(spike, width=40)


def test_sparkline_shows_gaps_as_gaps() -> None:
    steps = np.concatenate([np.arange(0, 100, 10), np.arange(500, 600, 10)])
    line = sparkline(np.ones(20), 60, steps, (0, 599))
    assert set(line[:10]) == {"▁"}
    assert set(line[10:50]) == {"·"}
    assert set(line[50:]) == {"▁"}
    assert len(line) == 60


def test_sparklines_of_one_run_lie_below_each_other() -> None:
    """Evaluations every hundredth step stand until the next one; what comes late begins late, what ends early ends."""
    often, seldom = np.arange(1_000), np.arange(100, 600, 100)
    assert sparkline(np.linspace(0, 1, 1_000), 10, often, (0, 999)) == "▁▂▃▃▄▅▆▆▇█"
    assert sparkline(np.array([5.0, 4, 3, 2, 1]), 10, seldom, (0, 999)).startswith(" █▆▅▃▁")
    spread = np.geomspace(1, 1e8, 9)
    assert sparkline(spread, 9, logarithm=True) == "▁▂▃▄▄▅▆▇█" or sparkline(spread, 9, logarithm=True)[4] in "▄▅"
    assert sparkline(spread, 9).startswith("▁▁▁▁▁▁▁")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0.0083333, "0.00833"), (128.94, "129"), (1.0, "1"), (12_030, "12,030"), (12_345.67, "12,346")],
        *[(1.2345e9, "1.23e9"), (1.5e-7, "1.5e-7"), (0.0002, "0.0002"), (math.nan, "NaN"), (-math.inf, "-inf")],
        *[(3_730_000.5, "3,730,000"), (-0.33333, "-0.333"), (None, "-"), (999.96, "1,000")],
    ],
)
def test_numbers_are_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_numbers_with_an_error_and_shares() -> None:
    assert measured(0.123456, 0.0012) == "0.1235"
    assert measured(123.456, 20) == "123"
    assert measured(2.5, math.inf) == "2.5"
    assert [share(x) for x in (0.0083, 0.057, 1.29, 0.5, math.nan)] == ["0.83 %", "5.7 %", "129 %", "50 %", "NaN"]


def test_findings_and_treatments_are_marked_below_the_curves(report: Report) -> None:
    history = History.of(train_loss=[1.0] * 101)
    lines = dataclasses.replace(report, history=history).to_text().splitlines()
    marks = {line.split()[0]: line for line in lines if "▲" in line or "◆" in line}
    start = next(line for line in lines if line.startswith("  train/loss")).index("▁")
    assert marks["findings"].index("▲") - start == 41 * 40 // 101
    assert marks["treatments"].index("◆") - start == 60 * 40 // 101


def test_one_illness_in_several_validation_sets_is_one_thing() -> None:
    curves = {f"validation/g{i}/loss": [1.0, 0.8, 0.7, 0.9, 1.2] for i in range(6)}
    history = History.of(train_loss=[1.0, 0.5, 0.2, 0.1, 0.05])
    for name, values in curves.items():
        history.add_series(name, range(5), values)
    severities = [Severity.ERROR] * 2 + [Severity.WARNING] * 4
    findings = [
        Finding(
            id=f"f{i}",
            code="TM501",
            name="overfitting",
            severity=severity,
            step=2,
            detected_at=4,
            where=(name,),
            message=f"{name} rose",
        )
        for i, (name, severity) in enumerate(zip(curves, severities, strict=True))
    ]
    assert verdict(Report(history, findings=tuple(findings), checked=("TM501",))) == (
        "1 thing wrong: TM501 overfitting since step 2 (6 times)"
    )
