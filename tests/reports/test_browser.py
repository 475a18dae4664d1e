"""The page and TensorBoard as people see them: in Chromium, from a file and from a real server on this machine."""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reports.browsing import Watched, browser, pictured, serious
from tests.reports.conftest import HOSTILE
from trainmedic.buckets import LIMITS, Counted
from trainmedic.reports.comparison import compare
from trainmedic.reports.comparison_page import render as render_comparison
from trainmedic.reports.page import render
from trainmedic.reports.tensorboard import TensorBoardWriter, write_report

pytestmark = pytest.mark.xdist_group("browser")  # one Chromium and one server for all of these

DESK, PHONE = (1440, 900), (390, 844)
SERVER = """
import sys, time
from tensorboard import default, program
from trainmedic.reports.plugin import MedicPlugin
plugins = default.get_plugins()  # ours too, where this checkout is installed
board = program.TensorBoard(plugins if MedicPlugin in plugins else [*plugins, MedicPlugin])
board.configure(argv=["", "--logdir", sys.argv[1], "--host", "127.0.0.1", "--port", "0", f"--load_fast={sys.argv[2]}"])
print(board.launch(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page from its text in a new tab; afterwards nothing may have gone wrong in it."""
    tabs: list[Watched] = []

    def open_tab(text: str, size: tuple[int, int] = DESK, scheme: str = "light") -> Any:
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        tab = chromium.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        tabs.append(Watched(tab))
        tab.goto(file.as_uri())
        tab.wait_for_selector(".plot canvas")
        tab.wait_for_timeout(150)
        return tab

    yield open_tab
    for watched in tabs:
        watched.assert_quiet()
        watched.tab.close()


@pytest.fixture(scope="module")
def page_text() -> str:
    return render(pictured())


def expect(locator: Any) -> Any:
    """Playwright's expectations: they wait for what is soon to be."""
    from playwright.sync_api import expect as playwright_expect

    return playwright_expect(locator)


def wide(tab: Any) -> bool:
    return bool(tab.evaluate("document.documentElement.scrollWidth > innerWidth"))


# -- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_hinders_nobody(opened: Any, page_text: str, size: tuple[int, int], scheme: str) -> None:
    tab = opened(page_text, size, scheme)
    assert not wide(tab)
    assert serious(tab) == []
    expect(tab.locator("h1")).to_have_count(1)
    expect(tab.locator("h1")).to_contain_text("TM202 exploding-gradient")


def test_the_page_shows_all_there_is(opened: Any, page_text: str) -> None:
    tab = opened(page_text)
    titles = tab.locator("h2").all_inner_texts()
    wanted = ["At a glance", "Findings", "Treatments", "Curves", "Layers", "All other curves", "What was checked"]
    assert titles == [*wanted, "About this run"]
    assert "Treated from step 200 by clip-gradients: the loss of block fell." in tab.locator(".hero").inner_text()
    text = tab.locator("main").inner_text()
    for said in (
        "50 times the limit",
        "no activations in block",
        "clip(model)",
        "Followed by",
        "the loss of block fell",
    ):
        assert said in text, said
    expect(tab.locator("text=Share of the run's time")).to_have_count(1)


def test_hovering_tells_step_and_value_and_a_nan_by_its_name(opened: Any, page_text: str) -> None:
    tab = opened(page_text)
    over = tab.locator(".chart").first.locator(".u-over")
    box = over.bounding_box()
    over.hover(position={"x": box["width"] * 200 / 399, "y": 40})
    expect(tab.locator(".chart").first.locator(".at")).to_have_text("step 200")
    expect(tab.locator(".chart").first.locator(".value").first).to_have_text("NaN")
    over.hover(position={"x": box["width"] * 120 / 399, "y": 40})  # within the hole
    expect(tab.locator(".chart").first.locator(".value").first).to_have_text("–")


def test_dragging_zooms_all_charts_and_a_double_click_shows_the_whole_run(opened: Any, page_text: str) -> None:
    tab = opened(page_text)
    over = tab.locator(".chart").first.locator(".u-over")
    box = over.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60, steps=4)
    tab.mouse.up()
    over.hover(position={"x": 1, "y": 40})
    expect(tab.locator(".chart").first.locator(".at")).to_have_text(re.compile("^step (19[5-9]|20[0-5])$"))
    over.dblclick(position={"x": 20, "y": 40})
    over.hover(position={"x": 1, "y": 40})
    expect(tab.locator(".chart").first.locator(".at")).to_have_text(re.compile("^step [01]$"))


def test_the_layer_map_answers_the_mouse(opened: Any, page_text: str) -> None:
    tab = opened(page_text)
    canvas = tab.locator(".map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    row = (box["height"] - 22) / 12
    canvas.hover(position={"x": box["width"] * 0.6, "y": row * 4.5})
    expect(tab.locator(".tip")).to_contain_text("block.4.weight")
    expect(tab.locator(".tip")).to_contain_text("Gradient norm, step")
    canvas.hover(position={"x": 225, "y": row * 0.5})
    expect(tab.locator(".tip strong")).to_have_text("0")
    canvas.click(position={"x": box["width"] * 0.6, "y": row * 7.5})
    expect(tab.locator(".past h3")).to_have_text("block.7.weight")
    tab.locator(".layers select").first.select_option(label="Zero activations")
    expect(tab.locator(".layers > .quiet")).to_contain_text("share of outputs that are exactly zero")


def test_everything_works_by_keyboard(opened: Any, page_text: str) -> None:
    tab = opened(page_text)
    tab.locator(".plot").first.focus()
    tab.keyboard.press("End")
    expect(tab.locator("[role=status].unseen")).to_contain_text("Step 399: train")
    tab.keyboard.press("+")
    tab.keyboard.press("Home")
    expect(tab.locator("[role=status].unseen")).not_to_contain_text("Step 399")
    tab.locator(".map canvas").focus()
    tab.keyboard.press("ArrowDown")
    expect(tab.locator("[role=status].unseen")).to_contain_text("block.1.weight, step")
    tab.keyboard.press("Enter")
    expect(tab.locator(".past h3")).to_have_text("block.1.weight")
    tab.get_by_text("The map as a table").click()
    expect(tab.locator(".layers table tbody tr")).to_have_count(12)


def test_a_finding_and_its_layers_are_shown_on_request(opened: Any, page_text: str) -> None:
    tab = opened(page_text)
    tab.locator("button.span").nth(1).click()
    expect(tab.locator("button.span").nth(1)).to_have_attribute("aria-pressed", "true")
    tab.locator(".finding .chip").nth(3).click()
    expect(tab.locator(".past h3")).to_have_text("block.3.weight")


def test_the_theme_is_chosen_and_remembered(opened: Any, page_text: str) -> None:
    tab = opened(page_text)
    background = "getComputedStyle(document.body).backgroundColor"
    before = tab.evaluate(background)
    tab.get_by_role("button", name="Dark theme").click()
    after = tab.evaluate(background)
    assert after != before
    tab.reload()
    assert tab.evaluate(background) == after


def test_it_prints_whole(opened: Any, page_text: str) -> None:
    tab = opened(page_text, DESK, "dark")
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(tab.locator("details.finding:not([open])")).to_have_count(0)
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    assert len(tab.pdf(format="A4")) > 20_000
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("document.documentElement.dataset.theme") in ("", None)


def test_hostile_names_are_text(opened: Any) -> None:
    tab = opened(render(pictured(HOSTILE)))
    expect(tab.locator("script")).to_have_count(2)
    expect(tab.locator("img, iframe, a")).to_have_count(0)
    expect(tab.locator("main")).to_contain_text("<script>alert(1)</script>[red]x[/red]\\x1b[31mRED\\x07 **bold**")
    assert not wide(tab)


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_500_layers_and_50_findings_stay_readable(opened: Any, size: tuple[int, int]) -> None:
    tab = opened(render(pictured("model.decoder.layers.attention", layers=500, findings=50, steps=200)), size)
    assert not wide(tab)
    assert tab.locator(".lanes").bounding_box()["height"] < 260
    assert tab.locator(".map canvas").bounding_box()["height"] < 800
    expect(tab.locator("details.finding")).to_have_count(50)
    expect(tab.locator("details.finding[open]")).to_have_count(3)


def test_a_calm_run_and_a_list_of_runs(opened: Any) -> None:
    calm = pictured("calm", findings=0)
    tab = opened(render(pictured(), calm))
    expect(tab.locator(".runs tbody tr")).to_have_count(2)
    tab.get_by_role("button", name="runs/calm").click()
    expect(tab.locator("h1")).to_contain_text("Nothing wrong found")
    expect(tab.locator("main")).to_contain_text("None of the 2 rules that could judge this run found anything.")
    assert serious(tab) == []


# -- the page of a comparison -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [DESK, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["block", HOSTILE])
def test_the_page_of_a_comparison_is_usable(opened: Any, size: tuple[int, int], scheme: str, name: str) -> None:
    reports = [pictured(name), pictured("calm", findings=0), pictured("third", findings=1)]
    tab = opened(render_comparison(compare(reports)), size, scheme)
    expect(tab.locator("h1")).to_be_visible()
    for words in ("validation/loss", "exploding-gradient", "calm"):
        expect(tab.get_by_text(words).first).to_be_attached()
    assert tab.locator(".plot canvas").count() >= 2
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert serious(tab) == []


# -- TensorBoard -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("boards")
    write_report(pictured("calm", findings=0), home / "a calm run")
    write_report(pictured(), home / "sick")
    write_report(pictured(HOSTILE), home / "strange")
    draw_histograms(home / "sick", "block.0.weight")
    draw_histograms(home / "strange", HOSTILE)
    return home


def draw_histograms(logdir: Path, layer: str) -> None:
    """As of weights that spread out while the run goes on."""
    draw = np.random.default_rng(0)
    writer = TensorBoardWriter(logdir)
    for step in range(0, 400, 40):
        sample = draw.normal(0, 0.1 + step / 400, 4_096)
        most = np.abs(sample).max()
        counts = np.bincount(np.searchsorted(LIMITS, sample), minlength=len(LIMITS))
        row = np.r_[sample.min(), sample.max(), sample.sum(), (sample**2).sum() / most**2, counts].astype(np.float32)
        writer.write_histograms(step, time.time(), Counted("weights", [layer], [1.0], row[None]))
    writer.close()


@contextmanager
def serving(logdir: Path, fast: str) -> Iterator[str]:
    command = [sys.executable, "-c", SERVER, str(logdir), fast]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().decode().strip()
        finally:
            server.kill()


@pytest.fixture(scope="module")
def address(boards: Path, chromium: Any) -> Iterator[str]:
    """TensorBoard as it is by default: with its data server, where that is installed."""
    with serving(boards, "auto") as base:
        yield base


@pytest.fixture(scope="module")
def board(chromium: Any, address: str) -> Iterator[Watched]:
    watched = Watched(chromium.new_page(viewport={"width": 1440, "height": 1100}))
    yield watched
    watched.tab.close()


def test_the_health_dashboard_shows_its_charts(board: Watched, address: str) -> None:
    board.tab.goto(f"{address}#custom_scalars")
    for title in ("Loss, and where findings", "Gradient norm of the layers", "Update / weight", "Learning rate"):
        board.tab.get_by_text(title).first.wait_for(timeout=20_000)
    board.tab.get_by_text("Matches (10)").first.wait_for(timeout=20_000)  # losses of three runs, marks of two
    board.assert_quiet()


def test_findings_and_treatments_are_text(board: Watched, address: str) -> None:
    board.tab.goto(f"{address}#text")
    board.tab.get_by_text("grew from 1.2 to inf").first.wait_for(timeout=20_000)
    board.tab.get_by_text("clip(model)").first.wait_for()
    assert board.tab.locator("script:has-text('alert(1)')").count() == 0
    board.assert_quiet()


def test_layer_maps_are_images(board: Watched, address: str) -> None:
    board.tab.goto(f"{address}#images")
    board.tab.get_by_text("medic/layers/Gradient norm").first.wait_for(timeout=20_000)
    board.tab.locator("img[src*='data/plugin/images/individualImage']").first.wait_for(timeout=20_000)
    board.assert_quiet()


@pytest.mark.parametrize(
    ("tab", "card"), [("histograms", "tf-histogram-loader"), ("distributions", "tf-distribution-loader")]
)
def test_weights_are_histograms_and_distributions(board: Watched, address: str, tab: str, card: str) -> None:
    board.tab.goto(f"{address}#{tab}")
    drawn = board.tab.locator(card).filter(has_text="weights/block.0.weight")
    drawn.first.wait_for(timeout=20_000)
    expect(drawn.first.locator("svg path[d]").nth(6)).to_be_attached(timeout=20_000)  # ten steps, or nine percentiles
    assert board.tab.locator("script:has-text('alert(1)')").count() == 0
    board.assert_quiet()


def test_the_tab_medic_shows_the_worst_run_first_and_any_other_on_request(board: Watched, address: str) -> None:
    board.tab.goto(f"{address}#medic")
    board.tab.wait_for_selector("iframe")
    frame = board.tab.frame_locator("iframe")
    frame.locator(".map canvas").wait_for(timeout=20_000)
    expect(frame.locator("h1")).to_contain_text("TM202 exploding-gradient")
    assert frame.locator("#run option").all_inner_texts() == ["✓ a calm run", "✕ sick", "✕ strange"]
    canvas = frame.locator(".map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.6, "y": (box["height"] - 22) / 12 * 7.5})
    expect(frame.locator(".past h3")).to_have_text("block.7.weight")
    frame.locator("#run").select_option("a calm run")
    frame.get_by_text("Nothing wrong found").first.wait_for()
    frame.locator("#run").select_option("strange")
    frame.get_by_text("alert(1)").first.wait_for()
    assert serious(board.tab, {"fromFrames": ["iframe", "main"]}) == []
    board.assert_quiet()


def test_the_plugin_reads_through_either_way_of_loading(boards: Path, address: str) -> None:
    with serving(boards, "false") as slowly:
        for base in (address, slowly):
            assert [run["state"] for run in all_runs(base)] == ["fine", "error", "error"]
            with urllib.request.urlopen(f"{base}data/plugin/medic/run?run=sick") as answer:
                assert json.load(answer)["runs"][0]["path"] == "runs/block"
            with urllib.request.urlopen(f"{base}data/plugins_listing") as answer:
                assert json.load(answer)["medic"]["enabled"]
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{base}data/plugin/medic/run?run=nowhere")


def all_runs(base: str) -> list[dict[str, str]]:
    """The runs that the plugin names, once TensorBoard has read the three of them: it answers while it still reads."""
    runs: list[dict[str, str]] = []
    for _ in range(100):
        with urllib.request.urlopen(f"{base}data/plugin/medic/runs") as answer:
            runs = json.load(answer)
        if len(runs) == 3:
            break
        time.sleep(0.1)
    return runs
