"""The page: one bounded file whose data is honest and whose text can do nothing. What it looks like: test_browser."""

import base64
import json
import math
import re
from typing import Any

import numpy as np
import pytest

from trainmedic.history import History, Layer, LayerTable, Series, Snapshot
from trainmedic.remedies.change import Treatment
from trainmedic.reports import thin
from trainmedic.reports.layermap import FIRST_CODE, LAST_CODE, MAPS, NOT_FINITE, ZERO, colours, layer_map
from trainmedic.reports.page import asset, page, render
from trainmedic.reports.picture import packed, picture
from trainmedic.reports.report import Report


def data_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    content = json.loads(found)
    assert isinstance(content, dict)
    return content


def unpacked(entry: dict[str, str]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(entry["data"]), dtype=np.dtype(entry["type"].lower()).newbyteorder("<"))


def long_run(steps: int, layers: int, statistics: int = 10) -> History:
    """A log of ``steps`` steps that measured ``layers`` layers at every 50th."""
    draw = np.random.default_rng(0)
    history = History()
    at = np.arange(steps)
    for name in (
        "train/loss",
        "gradient/norm",
        "optimizer/learning_rate",
        "time/step",
        *(f"input/x{i}" for i in range(20)),
    ):
        history.add_series(name, at, draw.random(steps) + 0.1)
    history.add_series("validation/loss", at[::500], draw.random(len(at[::500])))
    names = [f"blocks.{i}.weight" for i in range(layers)]
    history.architecture.update({name: Layer(name, "parameter", i) for i, name in enumerate(names)})
    for step in range(0, steps, max(1, steps // 200)):
        for statistic in list(MAPS)[:statistics]:
            history.record(
                Snapshot(step, layers={statistic: dict(zip(names, draw.random(layers).tolist(), strict=True))})
            )
    return history


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_asks_for_nothing(report: Report) -> None:
    text = report.to_html()
    head = text.partition("</head>")[0]
    assert text.startswith("<!DOCTYPE html>")
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,"]
    assert "default-src 'none'" in head
    assert "'unsafe" not in head
    assert "@import" not in text
    assert "url(" not in head


def test_a_run_of_a_hundred_thousand_steps_and_a_hundred_layers_fits() -> None:
    text = render(Report(long_run(100_000, 100)))
    assert len(text.encode()) < 1_500_000
    assert len(data_of(text)["runs"][0]["maps"]) == 10


def test_very_many_layers_stay_bounded_and_it_is_said_what_is_left_out() -> None:
    draw = np.random.default_rng(0)
    history = History()
    names = [f"experts.{i}.weight" for i in range(6_000)]
    for step in range(60):
        for statistic in ("gradient_norm", "update_ratio", "weight_norm"):
            history.record(
                Snapshot(step, layers={statistic: dict(zip(names, draw.random(6_000).tolist(), strict=True))})
            )
    run = picture(Report(history))
    assert len(json.dumps(run)) < 2_500_000
    assert any("2,000 of 6,000 layers" in note for note in run["notes"])


def test_many_runs_share_the_room() -> None:
    history = long_run(5_000, 20)
    text = render(*[Report(history, path=f"runs/{i}") for i in range(12)])
    assert len(text) < 6_000_000
    assert [run["path"] for run in data_of(text)["runs"]] == [f"runs/{i}" for i in range(12)]
    with pytest.raises(ValueError, match="at least one report"):
        render()


def test_hundreds_of_runs_are_drawn_in_brief() -> None:
    history = long_run(1_000, 4, statistics=2)
    text = render(*[Report(history, path=f"runs/{i}") for i in range(310)])
    assert len(text) < 10_000_000
    content = data_of(text)
    assert (len(content["runs"]), content["left_out"]) == (300, 10)
    assert all(chart["main"] for chart in content["runs"][0]["charts"])


def test_hostile_text_stays_data(hostile_report: Report) -> None:
    text = render(hostile_report, hostile_report)
    scripts = re.findall(r"<script[^>]*>", text)
    assert scripts == ['<script type="application/json" id="data">', "<script>"]
    assert text.count("</script>") == 2
    for forbidden in ("<script>alert", "\x1b", "\x07", "\u202e", "<img"):
        assert forbidden not in text
    assert "<script>alert(1)</script>" in data_of(text)["runs"][0]["findings"][0]["message"]


def test_a_title_from_a_log_ends_no_element() -> None:
    text = page("</title><script>alert(1)</script>", {"runs": []}, without_script="</pre></noscript><b>x</b>")
    assert "</title><script>alert" not in text
    assert "</pre></noscript><b>" not in text


def test_the_page_says_it_in_words_for_those_without_scripts(report: Report) -> None:
    (text,) = re.findall(r"<noscript>(.*?)</noscript>", report.to_html(), flags=re.DOTALL)
    assert "TM202 exploding-gradient" in text


def test_the_vendored_library_keeps_its_licence() -> None:
    assert "MIT" in asset("uPlot.LICENSE.txt")
    assert "github.com/leeoniya/uPlot" in asset("uPlot.js")[:100]


def test_no_asset_puts_text_in_as_markup() -> None:
    for name in ("base.js", "curves.js", "layers.js", "report.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://(?!www\.w3\.org)", asset(name)
        ), name


# -- what is in it ---------------------------------------------------------------------------------------------------


def test_a_treatment_is_told_with_all_that_is_known_of_it(report: Report) -> None:
    class Later(Treatment):
        heart_rate: float = 61.5

    treatment = Later(**dict(report.treatments[0]))
    told = picture(Report(report.history, treatments=(treatment,)))["treatments"][0]
    assert told["columns"] == ["before", "followed by"]
    assert told["compared"][0]["control"] == {"text": "NaN", "value": None}
    assert told["compared"][0]["treated"] == {"text": "0.25", "value": 0.25}
    assert told["others"] == [["heart rate", "61.5"]]


def test_a_finding_ends_where_it_was_treated(report: Report) -> None:
    first, second = picture(report)["findings"]
    assert (first["step"], first["until"], first["root"]) == (41, 60, True)
    assert (second["until"], second["root"], first["explains"]) == (None, False, ["f2"])
    assert first["evidence"][0] == {"name": "gradient norm", "value": "inf", "limit": "1,000", "ratio": None}


def test_a_calm_run_says_what_was_checked(calm_report: Report) -> None:
    run = picture(calm_report)
    assert run["state"] == "fine"
    assert run["verdict"].startswith("nothing wrong found: 2 rules checked")
    assert ["Findings", "none", "2 rules checked"] in run["summary"]
    assert picture(Report(History()))["state"] == "unjudged"


def test_values_that_are_not_finite_travel_as_they_are() -> None:
    values = np.array([1.5, math.nan, math.inf, -math.inf, 0.0])
    np.testing.assert_array_equal(unpacked(packed(values)), values)
    assert packed(np.array([1e300]))["type"] == "Float64"
    assert unpacked(packed(np.array([1e300])))[0] == 1e300
    assert packed(np.array([0, 2**40]))["type"] == "Float64"
    assert unpacked(packed(np.array([5, 7])))[1] == 7


def test_every_curve_of_the_log_is_somewhere() -> None:
    history = long_run(200, 5)
    run = picture(Report(history))
    drawn = {name for chart in run["charts"] for name in chart["curves"]}
    assert set(history.names()) <= drawn == set(run["curves"])
    assert run["charts"][0]["curves"] == ["train/loss", "validation/loss"]
    own = History()
    own.add_series("metric of mine", [0, 1], [1.0, 2.0])
    assert picture(Report(own))["charts"][0]["main"] is True


# -- fewer points, honestly ------------------------------------------------------------------------------------------


def test_thinning_keeps_extremes_and_what_is_not_finite_at_their_steps() -> None:
    values = np.sin(np.arange(100_000) / 1e3)
    values[12_345], values[54_321], values[70_007], values[70_009] = 40.0, -40.0, math.nan, math.inf
    steps, kept = thin.points(Series(np.arange(100_000), values), 2_000)
    assert len(steps) <= 2_100
    assert {0, 12_345, 54_321, 70_007, 99_999} <= set(steps.tolist())
    np.testing.assert_array_equal(kept, values[steps])
    assert (np.diff(steps) > 0).all()
    short = Series(np.arange(5), values[:5])
    assert thin.points(short, 10) is short


def test_thinned_envelopes_are_those_of_the_whole() -> None:
    values = np.random.default_rng(1).normal(size=50_000)
    steps, kept = thin.points(Series(np.arange(50_000), values), 1_000)
    for stretch in range(500):
        inside = (steps >= stretch * 100) & (steps < (stretch + 1) * 100)
        whole = values[stretch * 100 : (stretch + 1) * 100]
        assert kept[inside].max() == whole.max()
        assert kept[inside].min() == whole.min()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (np.r_[np.arange(100), np.arange(400, 500)], [99]),
        (np.r_[np.arange(100), np.arange(100, 3_000, 16)], []),  # measured less often from here on: no hole
        (np.arange(0, 5_000, 50), []),
        (np.array([0, 1, 900]), []),
        (np.zeros(60, dtype=np.int64), []),
    ],
    ids=["hole", "sparser", "even", "short", "same"],
)
def test_holes_are_told_from_sparse_measuring(steps: np.ndarray[Any, Any], expected: list[int]) -> None:
    assert thin.gaps(steps) == expected


def test_a_map_keeps_both_ends_of_a_stretch_and_shows_the_unusual_one() -> None:
    values = np.full((1_000, 2), 1.0, dtype=np.float32)
    values[500, 0], values[700, 1] = 1e-9, 1e4
    cells = thin.cells(LayerTable(np.arange(1_000), ("a", "b"), values), 100)
    shown, other = cells.shown()
    assert cells.low.shape == (2, 100)
    assert shown[0, 50] == pytest.approx(1e-9)
    assert other[0, 50] == 1
    assert shown[1, 70] == pytest.approx(1e4)
    assert cells.steps[50] == 500


def test_codes_of_a_map_tell_zero_broken_and_unmeasured_apart() -> None:
    history = History.of(
        a__gradient_norm=[1e-6, 0.0, 1.0, 1.0],
        b__gradient_norm=[1.0, 1.0, math.nan, 1.0],
        a__gradient_nonfinite=[0, 0, 0, 1],
        b__gradient_nonfinite=[0, 0, 0, 0],
    )
    drawn = layer_map(history, "gradient_norm", 100)
    assert drawn.shown.tolist() == [[FIRST_CODE, ZERO, LAST_CODE, NOT_FINITE], [LAST_CODE, LAST_CODE, 0, LAST_CODE]]
    assert (drawn.low, drawn.high) == (pytest.approx(-6), 0.0)
    shares = layer_map(History.of(a__activation_zeros=[0.0, 0.5]), "activation_zeros", 100)
    assert shares.shown.tolist() == [[FIRST_CODE, LAST_CODE]]


def test_the_colours_are_as_bright_as_the_value_is_high() -> None:
    def brightness(colour: str) -> float:
        linear = [(int(colour[at : at + 2], 16) / 255) ** 2.2 for at in (1, 3, 5)]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    assert (np.diff([brightness(colour) for colour in colours()]) > 0).all()
