"""Runs side by side: who is best, what differs, in each form, and hostile names in each."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.errors import UsageError
from trainmedic.history import History
from trainmedic.reports import comparison_markdown, comparison_page, comparison_terminal
from trainmedic.reports.comparison import Comparison, better_side, compare, label
from trainmedic.reports.conclusion import conclusion
from trainmedic.reports.report import Report, dumps

HOSTILE = "<script>alert(1)</script>[red]x[/red]\x1b[31mRED\x07 **bold** | `c` @octocat \u202e\n# head"


def run(
    worse: float = 0.0,
    *,
    seed: int = 0,
    count: int = 300,
    path: str = "",
    every: int = 1,
    findings: tuple[Finding, ...] = (),
    **facts: Any,
) -> Report:
    """A run whose losses end ``worse`` than 1 with noise of 0.02, and whose accuracy follows."""
    time = np.arange(count)
    noise = np.random.default_rng(seed).standard_normal((2, count)) * 0.02
    loss = 1 + 2 * np.exp(-8 * time / count) + worse
    history = History()
    steps = (time * every).tolist()
    history.add_series("train/loss", steps, (loss + noise[0]).tolist())
    history.add_series("validation/loss", steps, (loss + 0.1 + noise[1]).tolist())
    history.add_series("validation/accuracy", steps, (1 - (loss + noise[1]) / 4).tolist())
    history.facts.update(facts)
    return Report(history, findings=findings, checked=("TM101", "TM501"), path=path or f"runs/{seed}", format="csv")


def finding(code: str, severity: Severity = Severity.ERROR, name: str = "overfitting") -> Finding:
    return Finding(id=code, code=code, name=name, severity=severity, step=41, detected_at=57, message="it rose")


def test_the_better_of_two() -> None:
    compared = compare([run(0.2, seed=1), run(seed=2)])
    text = conclusion(compared)
    assert re.match(
        r"B is better in validation/loss: 1\.\d+ against 1\.\d+, lower by 0\.\d+ ± 0\.\d+ \(15 %\), all along; "
        r"it came to A's last level by step \d+ \(\d+ % earlier\)",
        text,
    )
    assert [metric.name for metric in compared.metrics] == [
        "validation/loss",
        "validation/accuracy",
        "train/loss",
    ]
    assert {metric.name: (metric.better, metric.best.label) for metric in compared.metrics} == {
        "validation/loss": (-1, "B"),
        "validation/accuracy": (1, "B"),
        "train/loss": (-1, "B"),
    }


def test_no_difference_is_said_to_be_none() -> None:
    assert "no difference beyond noise in validation/loss: " in conclusion(compare([run(seed=1), run(seed=2)]))


def test_where_validation_is_silent_and_training_speaks_both_are_told() -> None:
    a, b = run(seed=1), run(seed=2)
    for report, worse in ((a, 0.0), (b, 0.3)):
        history = History.of(train_loss=(report.history.series("train/loss").values + worse).tolist())
        history.add_series("validation/loss", [0, 100, 200], [1.0, 0.9, 0.8])
        object.__setattr__(report, "history", history)
    text = conclusion(compare([a, b]))
    assert text.startswith("cannot tell which is better in validation/loss: 3 common values are too few (at least 8)")
    assert text.endswith("; but A is better in train/loss")


def test_of_several_each_is_held_against_the_best() -> None:
    compared = compare([run(0.3, seed=1), run(seed=2), run(0.001, seed=3), run(0.6, seed=4)])
    assert compared.metric is not None
    order = [standing.label for standing in compared.metric.standings]
    assert set(order[:2]) == {"B", "C"}
    assert order[2:] == ["A", "D"]
    verdicts = [standing.against.verdict for standing in compared.metric.standings[1:] if standing.against]
    assert verdicts == [0, -1, -1]
    best, other = order[:2]
    assert conclusion(compared) == (
        f"{best} is better in validation/loss than A, D, beyond noise; no difference beyond noise to {other}"
    )


def test_a_run_that_was_best_only_early_does_not_win_by_its_short_range() -> None:
    long, short = run(seed=1, count=1_000), run(-0.05, seed=2, count=1_000)
    early = History.of(validation_loss=(short.history.series("validation/loss").values[:100]).tolist())
    compared = compare([long, Report(early, path="early"), run(0.2, seed=3, count=1_000)])
    assert compared.metric is not None
    ended = {standing.label: standing.end for standing in compared.metric.standings}
    assert ended["B"] > ended["A"]
    assert compared.metric.standings[-1].label == "C"


def test_a_run_that_ends_in_nan_loses() -> None:
    broken = run(-0.5, seed=2)
    values = broken.history.series("validation/loss").values
    history = History.of(validation_loss=[*values[:200].tolist(), *[math.nan] * 100])
    compared = compare([Report(history, path="broken"), run(seed=1)])
    assert conclusion(compared) == "B is better in validation/loss: A is not finite since step 200"
    for text in (comparison_terminal.render(compared), comparison_markdown.render(compared)):
        assert "NaN" in text


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *[("train/loss", -1), ("validation/accuracy", 1), ("validation/val_acc_top1", 1), ("metrics/mAP50-95(B)", 1)],
        *[("validation/perplexity", -1), ("eval_wer", -1), ("valF1", 1), ("score_loss", -1), ("train/rougeL", 1)],
        *[("bpb", -1), ("time/step", 0), ("gradient/norm", 0), ("memory/host", 0), ("trapezoid", 0), ("classes", 0)],
        *[("optimizer/learning_rate", 0), ("top_5_accuracy", 1), ("train/error_rate", -1), ("mse", -1), ("scores", 0)],
    ],
)
def test_which_side_is_better_is_read_from_the_name(name: str, side: int) -> None:
    assert better_side(name) == side


def test_a_metric_can_be_asked_for() -> None:
    reports = [run(0.2, seed=1), run(seed=2)]
    assert conclusion(compare(reports, "validation/accuracy")).startswith("B is better in validation/accuracy")
    with pytest.raises(UsageError, match=r"no two of the runs have a series 'validation/los'.*validation/loss"):
        compare(reports, "validation/los")
    for report in reports:
        report.history.add_series("zeal", [0, 1], [1.0, 2.0])
    assert any("whether more or less of zeal is better" in note for note in compare(reports, "zeal").notes)


def test_less_than_two_runs_are_an_error() -> None:
    with pytest.raises(UsageError, match="a comparison needs at least two runs"):
        compare([run()])


def test_runs_that_share_nothing_or_count_differently_are_not_compared() -> None:
    other = Report(History.of(a_b=[1.0, 2.0]), path="other")
    assert conclusion(compare([run(), other])).startswith("cannot be compared: the runs share no metric")
    by_epoch = compare([run(seed=1), run(seed=2, time="epoch")])
    assert by_epoch.notes[0] == "B counts epochs, others steps: its curves are not compared with theirs"
    apart = run(seed=3)
    late = History.of(train_loss=[1.0] * 20, steps=range(5_000, 5_020))
    assert conclusion(compare([apart, Report(late)])) == (
        "cannot be compared by train/loss: they have no steps in common"
    )


def test_different_losses_leave_the_verdict_to_accuracy() -> None:
    compared = compare([run(0.2, seed=1, loss="MSELoss"), run(seed=2, loss="CrossEntropyLoss")])
    assert compared.metrics[0].name == "validation/accuracy"
    assert "the runs have different losses (CrossEntropyLoss, MSELoss): their values say little" in compared.notes


def test_what_differs_in_settings() -> None:
    facts = {"optimizer": "AdamW", "versions": {"torch": "2.13.0"}, "batch_size": 32}
    a = run(
        seed=1, **facts, optimizer_options={"lr": 1e-3, "betas": [0.9, 0.99], "foreach": None}, config={"s": {"d": 1}}
    )
    b = run(
        seed=2, **facts, optimizer_options={"lr": 3e-3, "betas": [0.9, 0.95], "foreach": True}, config={"s": {"d": 2}}
    )
    settings = dict(compare([a, b]).settings)
    assert settings == {
        "lr": {"A": "0.001", "B": "0.003"},
        "betas": {"A": "0.9, 0.99", "B": "0.9, 0.95"},
        "config.s.d": {"A": "1", "B": "2"},
    }


def test_findings_side_by_side_worst_first() -> None:
    compared = compare(
        [
            run(seed=1, findings=(finding("TM402", Severity.WARNING, "loss-spike"), finding("TM501"))),
            run(seed=2, findings=(finding("TM402", Severity.ERROR, "loss-spike"),)),
        ]
    )
    assert [(code, {k: str(f.severity) for k, f in found.items()}) for code, _, found in compared.findings] == [
        ("TM402", {"A": "warning", "B": "error"}),
        ("TM501", {"A": "error"}),
    ]
    text = comparison_terminal.render(compared)
    assert re.search(r"TM501 overfitting +error since 41 +-\n", text)
    assert "| TM501 overfitting | error since 41 | - |" in comparison_markdown.render(compared)


def test_names_are_as_short_as_they_can_be() -> None:
    reports = [
        run(seed=1, path="/deep/down/runs/a/events.out.tfevents.1.host"),
        run(seed=2, path="/deep/down/runs/b.csv", run=1),
        run(seed=3, path="/deep/down/runs/b.csv", run=2),
    ]
    assert [entry.name for entry in compare(reports).entries] == ["a", "b.csv run 1", "b.csv run 2"]
    assert [label(i) for i in (0, 25, 26, 27, 702)] == ["A", "Z", "AA", "AB", "AAA"]


def hostile() -> Comparison:
    a, b = (run(seed=i, path=f"runs/{HOSTILE}{i}", **{HOSTILE: f"{HOSTILE}{i}"}) for i in (1, 2))
    for report in (a, b):
        report.history.add_series(f"{HOSTILE}/loss", [0, 1], [1.0, 2.0])
    return compare([a, b])


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("color", [False, True])
def test_terminal_fits_and_hostile_names_only_stand_there(width: int, color: bool) -> None:
    for compared in (hostile(), compare([run(i / 10, seed=i) for i in range(40)])):
        text = re.sub(r"\x1b\[[0-9;]*m", "", comparison_terminal.render(compared, width=width, color=color))
        assert all(character == "\n" or character.isprintable() for character in text)
        assert max(map(len, text.splitlines())) <= width
    assert ("\x1b" in comparison_terminal.render(compared, color=color)) == color


def test_markdown_is_bounded_and_hostile_names_only_stand_there() -> None:
    markdown = comparison_markdown.render(hostile())
    assert "<script" not in re.sub(r"`[^`]*`", "", markdown.replace("``", ""))
    assert not re.search(r"@\w", re.sub(r"(`+).*?\1", "", markdown))
    assert all(character == "\n" or character.isprintable() for character in markdown)
    many = compare([run(i / 10, seed=i, **{f"s{j}": i * j for j in range(200)}) for i in range(60)])
    assert len(comparison_markdown.render(many).encode()) < 65_536


def test_json_is_strict_ascii_and_complete() -> None:
    text = dumps(hostile().to_dict())
    assert text.isascii()

    def refuse(token: str) -> None:
        raise AssertionError(token)

    content = json.loads(text, parse_constant=refuse)
    assert [one["label"] for one in content["runs"]] == ["A", "B"]
    assert content["metrics"][0]["standings"][1]["against_best"]["verdict"] in (-1, 0, 1)
    assert content["verdict"] == conclusion(hostile())


def test_the_picture_shows_gaps_of_scale_and_letters() -> None:
    text = comparison_terminal.render(compare([run(seed=1), run(0.4, seed=2)]), width=80)
    picture = [line for line in text.splitlines() if "│" in line or "┤" in line]
    assert len(picture) == 12
    assert "A" in picture[-1]
    assert "B" not in picture[-1]
    assert re.search(r"└0 +step 299", text)


def test_the_page_is_one_file_in_which_text_is_data() -> None:
    text = comparison_page.render(hostile())
    assert re.findall(r"<script[^>]*>", text) == ['<script type="application/json" id="data">', "<script>"]
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,"]
    for forbidden in ("<script>alert", "\x1b", "\x07", "\u202e"):
        assert forbidden not in text
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    content = json.loads(found)
    assert content["verdict"] == conclusion(hostile())
    assert content["settings"][0][0].startswith("<script>alert(1)</script>[red]")
    assert [curve["line"] for curve in content["metrics"][0]["curves"]] == [0, 1]


def test_a_page_of_many_long_runs_stays_small() -> None:
    compared = compare([run(i / 10, seed=i, count=20_000) for i in range(12)])
    text = comparison_page.render(compared)
    assert len(text.encode()) < 2_000_000
    assert '"hidden": 6' in text


def test_groups_are_compared_by_how_their_runs_differ() -> None:
    base = [run(0.1 + 0.02 * i, seed=i, path=f"runs/base/{i}", seed_value=i, optimizer="SGD") for i in range(3)]
    new = [run(0.02 * i, seed=10 + i, path=f"runs/new/{i}", seed_value=i, optimizer="AdamW") for i in range(3)]
    new[1] = run(0.02, seed=11, optimizer="AdamW", seed_value=1, findings=(finding("TM501"),))
    compared = compare([], groups={"base": base, "new": new})
    assert [entry.name for entry in compared.entries] == ["base (3 runs)", "new (3 runs)"]
    text = conclusion(compared)
    assert text.startswith("B is better in validation/loss: ")
    assert re.search(r"lower by 0\.(09|10)", text)
    assert dict(compared.settings) == {"optimizer": {"A": "SGD", "B": "AdamW"}}
    assert [code for code, _, _ in compared.findings] == ["TM501"]
    for shown in (comparison_terminal.render(compared), comparison_markdown.render(compared)):
        assert "noise is how the runs of a group differ" in " ".join(shown.split())
    assert comparison_page.render(compared)
    assert compared.to_dict()["runs"][0]["members"] == ["runs/base/0", "runs/base/1", "runs/base/2"]


def test_repeats_without_groups_are_told_what_their_differences_are() -> None:
    notes = compare([run(seed=i) for i in range(3)]).notes
    assert any("between repeats, all that differs is chance" in note for note in notes)
