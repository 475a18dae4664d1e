"""Markdown: parsed by another's parser, so that what shows is what was meant, and text of a run does nothing."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
from markdown_it import MarkdownIt

from trainmedic.diagnose import Evidence, Finding, Severity
from trainmedic.history import History
from trainmedic.reports.markdown import LIMIT, render, span, text
from trainmedic.reports.report import Report
from trainmedic.reports.wording import printable

OURS = re.compile(r"</?details>|<details open>|<summary>.*</summary>")
HARMFUL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![p](http://x/y.png) [l](javascript:1)",
    "@octocat closes #12, GH-7, see https://x.y and www.x.y or a@b.cd",
    "| a | b |\n|---|---|\n# head\n- list\n1. one\n> quote\n```\ncode",
    "**b** _i_ ~~s~~ `c` ``d`` $m$ :tada: \\| a\\|b",
    "\x1b[31mred\x07 \u202egnp.exe \ud800",
    "&lt;b&gt; &#64;octocat &amp;",
    "</summary></details><h1>x",
    "`",
    " lead",
    "x" * 5_000,
]


def parsed(markdown: str) -> list[Any]:
    return MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").parse(markdown)


def leaves(tokens: list[Any]) -> Iterator[Any]:
    for token in tokens:
        yield from leaves(token.children) if token.children else [token]


def shown(markdown: str) -> str:
    """All text that a reader sees, entities resolved, without the spaces of no width."""
    visible = "".join(token.content for token in leaves(parsed(markdown)) if token.type in ("text", "code_inline"))
    return visible.replace("\u200b", "")


def test_verdict_findings_treatments_and_what_was_not_checked(report: Report) -> None:
    markdown = report.to_markdown()
    assert markdown.startswith("### trainmedic: 1 thing wrong\n\n`runs/fc1`, steps 0 to 2\n")
    assert "**1 thing wrong: TM202 exploding-gradient since step 41 (1 more finding explained by it)**" in markdown
    assert "| error | **TM202 exploding-gradient** | 41 | `fc1.0`, `fc1.1`, `fc1.2` and 7 more |" in markdown
    assert "| error | ↳ TM101 non-finite | 66 | `train/loss` |" in markdown
    assert "| gradient norm | inf | 1,000 |" in markdown
    assert "| loss | NaN nats | - |" in markdown
    assert "**What to do:** lower the learning rate; else look at fc1" in markdown
    assert "| train/loss | NaN | 0.25 |" in markdown
    assert "`train/loss` `█▁×` 1 to NaN" in markdown
    assert "* TM301 dead-relu, TM302 saturated-activation: no activations in this history" in markdown
    assert "* writing stopped: OSError: No space left on device" in markdown
    order = [
        markdown.index(part) for part in ("| error |", "What to do", "Treatments", "as code", "Refused", "Not checked")
    ]
    assert order == sorted(order)


def test_a_calm_run_is_short(calm_report: Report) -> None:
    markdown = calm_report.to_markdown()
    assert "### trainmedic: nothing wrong found" in markdown
    assert len(markdown.splitlines()) < 12
    assert Report(History.of(a_b=[1.0])).to_markdown().startswith("### trainmedic: could not judge")


@pytest.mark.parametrize("given", HARMFUL)
def test_text_of_a_run_only_stands_there(given: str) -> None:
    for piece in (text(given), span(given)):
        tokens = parsed(f"see {piece} there")
        assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
        assert {token.type for token in leaves(tokens[1:2])} <= {"text", "code_inline"}
        outside = "".join(token.content for token in leaves(tokens) if token.type == "text")
        assert not re.search(r"@\w|(?<![\w&])#\w|://|www\.|GH-\d|:tada:", outside)
    if len(given) < 100:
        assert shown(f"see {text(given)} there") == f"see {printable(given)} there"


@pytest.mark.parametrize("given", HARMFUL)
def test_hostile_names_in_a_whole_report(report: Report, given: str) -> None:
    finding = report.findings[0].model_copy(
        update={
            "where": (given, given),
            "message": given,
            "advice": given,
            "name": given,
            "evidence": (Evidence(name=given, value=1.0, unit=given),),
        }
    )
    history = History.of(train_loss=[1.0])
    history.add_series(given, [0], [1.0])
    hostile = dataclasses.replace(
        report,
        findings=(finding,),
        history=history,
        path=given,
        format=given,
        notes=(given,),
        refused=((given, given),),
    )
    for markdown in (render(hostile), render(hostile, hostile)):
        tokens = parsed(markdown)
        kinds = {token.type for token in leaves(tokens)}
        assert not kinds & {"image", "link_open", "s_open", "em_open"}
        blocks = [token.content for token in leaves(tokens) if token.type in ("html_block", "html_inline")]
        assert all(OURS.fullmatch(line) for block in blocks for line in block.strip().splitlines())
        assert all(len(row.strip("|").split(" | ")) < 20 for row in markdown.splitlines())
        assert sum(token.type == "heading_open" for token in tokens) == markdown.count("\n#") + 1
        assert all(character == "\n" or character.isprintable() for character in markdown)
        widths = _columns(tokens)
        assert widths
        assert set(widths) <= {3, 4}


def _columns(tokens: list[Any]) -> list[int]:
    """Cells in each row of each table."""
    widths = []
    for token in tokens:
        if token.type == "tr_open":
            widths.append(0)
        elif token.type in ("td_open", "th_open"):
            widths[-1] += 1
    return widths


def test_it_fits_a_comment_however_much_there_is(report: Report) -> None:
    many = tuple(
        Finding(
            id=f"f{i}",
            code="TM402",
            name="loss-spike",
            severity=Severity.WARNING,
            step=i,
            detected_at=i,
            where=tuple(f"layer{j}.é" * 20 for j in range(500)),
            message="é" * 3_000,
            advice=f"advice {i}",
        )
        for i in range(200)
    )
    big = dataclasses.replace(report, findings=many)
    for markdown in (render(big), render(*[big] * 300)):
        assert len(markdown.encode()) <= LIMIT + 200 < 65_536
        assert "more than fits here" in markdown
        assert markdown.count("<details") == markdown.count("</details>")


def test_several_runs_have_a_table_and_the_sick_their_details(report: Report, calm_report: Report) -> None:
    markdown = render(report, calm_report)
    assert markdown.startswith("### trainmedic: 1 of 2 runs with findings")
    assert "| error | `runs/fc1` | TM202 exploding-gradient since step 41 |" in markdown
    assert "| fine | `runs/calm` |  |" in markdown
    assert "#### `runs/fc1`" in markdown
