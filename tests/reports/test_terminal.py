"""The terminal report: the verdict first, everything in it, and no text of a log that does more than stand there."""

import dataclasses
import math
import re

import numpy as np
import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.history import History
from trainmedic.reports.report import Report
from trainmedic.reports.sparkline import sparkline
from trainmedic.reports.terminal import render


def test_a_sick_run_shows_verdict_evidence_advice_and_what_it_explains(report: Report) -> None:
    text = report.to_text()
    lines = text.splitlines()
    assert lines[0].startswith("runs/fc1  steps 0 to 2")
    assert lines[1] == "1 thing wrong: TM202 exploding-gradient since step 41 (1 more finding explained by it)"
    assert "error TM202 exploding-gradient  since step 41, evident at step 57, confidence 90 %" in text
    assert "gradient norm inf (limit 1,000); loss NaN nats" in text
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
    assert "TM301 dead-relu, TM302 saturated-activation: no activations in this history" in text
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
    assert text.count("do        wait") == 1
    assert text.count("do        as above") == 9
    assert "spike 49" in text


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
