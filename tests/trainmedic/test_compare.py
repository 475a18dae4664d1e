"""``trainmedic compare``: logs of different tools side by side, every form, exit codes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from trainmedic.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def losses(worse: float, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    time = np.arange(400)
    return 0.5 + 2 * np.exp(-time / 40) + worse + 0.02 * np.random.default_rng(seed).standard_normal(400)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A directory of TensorBoard, a value each step."""
    from trainmedic.reports.tensorboard import TensorBoardWriter

    writer = TensorBoardWriter(tmp_path / "board")
    for step, loss in enumerate(losses(0, 1).tolist()):
        writer.write_series("train/loss", step, loss)
        writer.write_series("val/loss", step, loss + 0.1)
        writer.write_series("lr", step, 0.01)
    writer.close()
    return tmp_path / "board"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV, a row each fifth step."""
    path = tmp_path / "table.csv"
    rows = [f"{i},{loss},{loss + 0.1},0.03" for i, loss in enumerate(losses(0.2, 2).tolist()) if i % 5 == 0]
    path.write_text("\n".join(["step,train_loss,val_loss,lr", *rows]) + "\n")
    return path


def test_formats_of_different_tools_compare(board: Path, table: Path) -> None:
    result = run("compare", table, board)
    assert result.exit_code == 0, result.output
    assert "B is better in validation/loss: 0.6" in result.stdout
    assert "learning rate, last     0.03  0.01" in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_a_directory_stands_for_all_runs_in_it(board: Path, table: Path) -> None:
    assert "2 runs compared" in run("compare", board.parent, "--format", "markdown").stdout


def test_runs_of_a_directory_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        rows = [f"{i},{loss}" for i, loss in enumerate(losses(0, number).tolist())]
        (tmp_path / f"run{number}.csv").write_text("\n".join(["step,loss", *rows]) + "\n")
    lines = run("compare", tmp_path).stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["A", "run1.csv"], ["B", "run9.csv"], ["C", "run10.csv"]]


def test_json_and_a_file(board: Path, table: Path, tmp_path: Path) -> None:
    result = run("compare", table, board, "--format", "json", "-o", tmp_path / "out.json", "--metric", "train/loss")
    assert (result.exit_code, result.stdout) == (0, "")
    content = json.loads((tmp_path / "out.json").read_text())
    best, other = content["metrics"][0]["standings"]
    assert content["metrics"][0]["name"] == "train/loss"
    assert (best["label"], other["label"], other["against_best"]["verdict"]) == ("B", "A", -1)
    assert 0.15 < -other["against_best"]["advantage"] < 0.25


def test_a_page_by_the_name_of_the_file(board: Path, table: Path, tmp_path: Path) -> None:
    result = run("compare", table, board, "-o", tmp_path / "out.html")
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")


def test_findings_decide_the_exit_code(board: Path, tmp_path: Path) -> None:
    sick = tmp_path / "sick.csv"
    rows = [f"{i},{loss if i < 300 else 'nan'}" for i, loss in enumerate(losses(0, 3).tolist())]
    sick.write_text("\n".join(["step,loss", *rows]) + "\n")
    assert run("compare", board, sick).exit_code == 1
    assert run("compare", board, sick, "--fail-on", "never").exit_code == 0
    assert "A is better in train/loss: B is not finite since step 300" in run("compare", board, sick).stdout


def test_what_cannot_be_compared_is_2(board: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("step,zeal\n" + "".join(f"{i},{i}\n" for i in range(20)))
    result = run("compare", board, other)
    assert result.exit_code == 2
    assert "cannot be compared" in result.stdout
    alone = run("compare", board)
    assert alone.exit_code == 2
    assert "a comparison needs at least two runs" in alone.stderr
    unknown = run("compare", board, other, "--metric", "train/los")
    assert unknown.exit_code == 2
    assert "did you mean" in unknown.stderr


def test_groups_of_repeats(tmp_path: Path) -> None:
    for name, worse in (("base", 0.2), ("new", 0.0)):
        (tmp_path / name).mkdir()
        for seed in range(3):
            rows = [f"{i},{loss}" for i, loss in enumerate(losses(worse + 0.01 * seed, seed).tolist())]
            (tmp_path / name / f"{seed}.csv").write_text("\n".join(["step,train_loss", *rows]) + "\n")
    base, new = f"base={tmp_path / 'base'}", f"new={tmp_path / 'new'}/*.csv"
    result = run("compare", "--group", base, "--group", new)
    assert result.exit_code == 0, result.output
    assert "A  base (3 runs)" in result.stdout
    assert "B is better in train/loss" in result.stdout
    wrong = run("compare", "--group", "base")
    assert (wrong.exit_code, "give a name and where its runs lie" in wrong.stderr) == (2, True)
    missing = run("compare", "--group", base, "--group", f"none={tmp_path / 'none'}")
    assert missing.exit_code == 2
    assert "the group 'none' holds none" in missing.stderr
