"""The command line: what it says, its exit codes, one clear line for every error, and how fast it starts."""

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

import trainmedic.analysis
import trainmedic.commands
from trainmedic import catalog
from trainmedic.cli import main
from trainmedic.diagnose.judge import catalogue
from trainmedic.history import History
from trainmedic.readers import find
from trainmedic.remedies.remedy import pharmacy
from trainmedic.reports.report import Report

SAMPLES = Path(__file__).parents[1] / "samples"
SCHEMA = json.loads(files("trainmedic.reports").joinpath("trainmedic.schema.json").read_text())
HEALTHY = "step,loss,val_loss\n" + "".join(f"{i},{1 / (i + 1)},{1.1 / (i + 1)}\n" for i in range(40))
SICK = "step,loss,val_loss\n" + "".join(f"{i},{1 / (i + 1) if i < 30 else 'nan'},{1 / (i + 1)}\n" for i in range(40))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error_of(result: Result) -> str:
    """The one line that a failed command must print, and nothing else."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("trainmedic: error: ")
    return line.removeprefix("trainmedic: error: ")


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    path = tmp_path / "healthy.csv"
    path.write_text(HEALTHY)
    return path


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    path = tmp_path / "sick.csv"
    path.write_text(SICK)
    return path


# -- analyze -----------------------------------------------------------------------------------------------------


def test_a_healthy_log_is_fine(healthy: Path) -> None:
    result = run("analyze", healthy)
    assert result.exit_code == 0
    assert "nothing wrong found" in result.stdout
    assert result.stderr == ""


def test_a_sick_log_is_diagnosed(sick: Path) -> None:
    result = run("analyze", sick)
    assert result.exit_code == 1
    assert "TM101 non-finite  since step 30" in result.stdout
    assert f"{sick}:32" in "".join(result.stdout.split())


def test_the_overfitting_sample() -> None:
    result = run("analyze", SAMPLES / "huggingface" / "trainer_state.json")
    assert result.exit_code == 1
    assert "TM501 overfitting" in result.stdout


def test_json_fits_the_schema_and_is_worst_first(sick: Path, healthy: Path) -> None:
    result = run("analyze", sick.parent, "--format", "json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    jsonschema.validate(content, SCHEMA)
    assert [Path(entry["path"]).name for entry in content["runs"]] == ["sick.csv", "healthy.csv"]
    assert content["runs"][0]["findings"][0]["code"] == "TM101"
    assert content["runs"][0]["names"] == {"train/loss": "loss", "validation/loss": "val_loss"}


def test_several_runs_have_one_line_each_and_a_path_given_twice_counts_once(sick: Path, healthy: Path) -> None:
    lines = run("analyze", healthy, sick, sick.parent).stdout.splitlines()
    assert lines[0].startswith(f"error      {sick}: TM101 non-finite since step 30")
    assert lines[1] == f"fine       {healthy}"
    assert lines[2] == ""


@pytest.mark.parametrize(("fail_on", "code"), [("error", 1), ("warning", 1), ("info", 1), ("never", 0)])
def test_fail_on(sick: Path, fail_on: str, code: int) -> None:
    assert run("analyze", sick, "--fail-on", fail_on).exit_code == code


def test_select_and_ignore(sick: Path) -> None:
    assert run("analyze", sick, "--ignore", "TM101").exit_code == 0
    assert run("analyze", sick, "--select", "non-finite,TM501").exit_code == 1
    assert run("analyze", sick, "--select", "TM501", "--select", "TM101").exit_code == 1


def test_settings_of_a_file(sick: Path, tmp_path: Path) -> None:
    file = tmp_path / "medic.toml"
    file.write_text('ignore = ["non-finite"]\n')
    assert run("analyze", sick, "--settings", file).exit_code == 0
    file.write_text('ignor = ["non-finite"]\n')
    assert "unknown setting 'ignor'; did you mean 'ignore'?" in error_of(run("analyze", sick, "--settings", file))


def test_output_goes_to_a_file(sick: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = run("analyze", sick, "--format", "json", "-o", out)
    assert result.stdout == ""
    jsonschema.validate(json.loads(out.read_text()), SCHEMA)
    assert run("analyze", sick, "-o", tmp_path / "out.txt").exit_code == 1
    assert "TM101" in (tmp_path / "out.txt").read_text(encoding="utf-8")
    for name, begin in (("out.html", "<!doctype html>"), ("out.sarif", "{"), ("out.md", "### trainmedic")):
        run("analyze", sick, "-o", tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8").lower().startswith(begin)
    assert f"**In the log:** `{sick}:32`" in (tmp_path / "out.md").read_text(encoding="utf-8")
    text = error_of(run("analyze", sick, "-o", tmp_path / "none" / "out.json"))
    assert text.endswith("out.json': No such file or directory")


def test_a_log_that_no_rule_can_judge_is_not_called_fine(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    result = run("analyze", path)
    assert result.exit_code == 2
    assert "could not judge" in result.stdout


def test_a_log_whose_losses_are_not_known_says_how_to_name_one(tmp_path: Path) -> None:
    path = tmp_path / "loss_log.txt"
    line = "(epoch: 1, iters: %d, time: 0.1, data: 0.2) G_GAN: 1.%d G_L1: 9.%d D_real: 0.4 D_fake: 0.3\n"
    path.write_text("".join(line % (i * 100, i, i) for i in range(1, 40)))
    missing, todo = "no training loss among G_GAN, G_L1, D_real, D_fake", "name it, as in --name train/loss=G_L1"
    text = " ".join(run("analyze", path).stdout.split())
    assert f"could not judge: {missing}" in text
    assert f"{missing}; {todo}" in text
    assert json.loads(run("analyze", path, "--format", "json").stdout)["runs"][0]["notes"] == [f"{missing}; {todo}"]
    assert f"{missing}; {todo}".replace("_", "\\_") in run("analyze", path, "--format", "markdown").stdout
    named = run("analyze", path, "--name", "train/loss=G_L1")
    assert named.exit_code != 2
    assert "no training loss" not in named.stdout


def test_how_to_name_a_loss_is_short_and_harmless_whatever_the_names(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    names = ["x" * 9_000, "\x1b]0;x\x07", "<script>", "my loss; rm *", *(f"c{i}" for i in range(500))]
    path.write_text("\n".join([",".join(names), *[",".join("1" * len(names))] * 3]), newline="")
    note = json.loads(run("analyze", path, "--format", "json").stdout)["runs"][0]["notes"][-1]
    assert len(note) < 300
    assert note.isprintable()
    assert note.endswith("and 496 more; name it, as in --name 'train/loss=my loss; rm *'")
    assert "<script>" not in run("analyze", path, "--format", "markdown").stdout


def test_one_unreadable_file_beside_a_healthy_one(healthy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "trainer_state.json"
    broken.write_text("{")
    result = run("analyze", healthy, broken, "--format", "json")
    assert result.exit_code == 2
    content = json.loads(result.stdout)
    jsonschema.validate(content, SCHEMA)
    assert content["unreadable"][0]["path"] == str(broken)
    assert "not valid JSON (cut off?)" in content["unreadable"][0]["reason"]
    assert result.stderr.startswith(f"trainmedic: error: {broken}: not valid JSON")


def test_every_command_is_a_file_of_its_own() -> None:
    files = Path(trainmedic.commands.__path__[0]).glob("[!_]*.py")
    listed = run("--help").stdout.partition("Commands:")[2]
    for name in (file.stem for file in files):
        assert f"\n  {name} " in listed
        assert run(name, "--help").stdout.startswith(f"Usage: trainmedic {name} ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["analyze", "nowhere"], "nowhere: there is no such file or directory"),
        (["analyze"], "Missing argument 'PATH...'. (see: trainmedic analyze --help)"),
        (["analyze", "x", "--select", "TM20"], "unknown rule 'TM20'; did you mean 'TM20"),
        (["analyze", "x", "--settings", "none.toml"], "settings file 'none.toml' does not exist"),
        (["analyze", "x", "--fail-on", "fatal"], "Invalid value for '--fail-on': 'fatal' is not one of"),
        (
            ["explain", "overfiting"],
            "no rule or remedy 'overfiting'; did you mean 'overfitting'? (see: trainmedic",
        ),
        (["explain", "clip-gradient"], "no rule or remedy 'clip-gradient'; did you mean 'clip-gradients'?"),
        (["analyse", "x"], "No such command 'analyse'"),
        (["report", "nowhere"], "nowhere: there is no such file or directory"),
        (
            ["demo", "vanish"],
            "'vanish' is not one of 'vanishing', 'exploding', 'dead', 'overfitting'. (see: ",
        ),
    ],
)
def test_every_mistake_is_one_clear_line(arguments: list[str], text: str) -> None:
    assert text in error_of(run(*arguments))


def test_hostile_names_only_stand_there(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31mrun [red].csv"
    path.write_text("step,loss,\x1b[2J<script>[red]\n" + "".join(f"{i},nan,1\n" for i in range(9)))
    for form in ("text", "json", "sarif", "github", "markdown", "html"):
        result = run("analyze", path, "--format", form)
        assert "\x1b" not in result.output
        assert "<script>[red]" not in result.output or form in ("text", "json")
    path.write_text("\x1b[2J")
    assert "\\x1b[31mrun [red].csv: not a log of a training that is known" in error_of(run("analyze", path))


def test_analyze_takes_the_shared_functions(sick: Path) -> None:
    history = trainmedic.read(sick)[0]
    assert [finding.code for finding in trainmedic.examine(history)] == ["TM101"]
    assert trainmedic.examine(history, {"ignore": "TM101"}) == []
    assert [report.path for report in trainmedic.analysis.analyze(sick.parent)] == [str(sick)]
    with pytest.raises(trainmedic.UsageError, match="examine\\(\\) needs a History"):
        trainmedic.examine([1, 2])  # type: ignore[arg-type]
    with pytest.raises(trainmedic.UnreadableError, match="no such file"):
        trainmedic.analysis.analyze(sick.parent / "nothing")


def test_sarif_and_annotations_point_at_the_line(sick: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    (result,) = json.loads(run("analyze", "sick.csv", "--format", "sarif").stdout)["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "sick.csv"},
        "region": {"startLine": 32},
    }
    annotated = run("analyze", "sick.csv", "--format", "github")
    assert annotated.exit_code == 1
    assert annotated.stdout.startswith("::error title=TM101 non-finite,file=sick.csv,line=32::")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    run("analyze", "sick.csv", "--format", "github")
    assert (tmp_path / "summary.md").read_text().startswith("before\n### trainmedic: 1 run of 1 with findings\n")


def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.csv").write_text(SICK if number % 3 else HEALTHY)
    (tmp_path / "trainer_state.json").write_text("{")
    alone, together = (run("analyze", tmp_path, "--format", "json", "--jobs", jobs) for jobs in (1, 3))
    assert together.stdout == alone.stdout
    assert together.stderr == alone.stderr
    assert together.exit_code == 1


def test_several_runs_in_one_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEALTHY + HEALTHY)
    runs = json.loads(run("analyze", path, "--format", "json").stdout)["runs"]
    assert [entry["path"] for entry in runs] == [f"{path}#1", f"{path}#2"]
    assert {entry["file"] for entry in runs} == {str(path)}


def test_names_given_by_option(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("n,objective\n" + "".join(f"{10 * i},{1 / (i + 1) if i < 30 else 'nan'}\n" for i in range(40)))
    assert run("analyze", path).exit_code == 2
    result = run("analyze", path, "--name", "train/loss=objective", "--name", "step=n", "--format", "json")
    assert result.exit_code == 1
    (entry,) = json.loads(result.stdout)["runs"]
    assert entry["names"] == {"train/loss": "objective"}
    assert (entry["findings"][0]["step"], entry["findings"][0]["line"], entry["last_step"]) == (300, 32, 390)
    missing = run("analyze", path, "--name", "train/loss=objektive", "--name", "step=n")
    assert missing.exit_code == 2
    assert "no log that was read has anything of the name 'objektive'" in missing.stderr
    for given, text in (
        ("train/loss", "give our name and that of the log"),
        ("train_loss=x", "there is no series 'train_loss'; did you mean 'train/loss'?"),
    ):
        assert text in error_of(run("analyze", path, "--name", given))


def test_what_is_wrong_with_a_checksum_shows_with_verify(tmp_path: Path) -> None:
    from tests.readers.test_tensorboard import scalar, write

    path = write(tmp_path / "events.out.tfevents.1.host", [scalar("loss", i, 1 / (i + 1)) for i in range(40)])
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "checksums of the records were not verified" in run("analyze", path).stdout
    assert "1 records do not fit their checksum and were left out" in run("analyze", path, "--verify").stdout


# -- a watched run -----------------------------------------------------------------------------------------------


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    history = History.of(train_loss=[1.0] * 20 + [float("nan")] * 20)
    history.save(tmp_path / "run" / "history.npz")
    told = Report.from_history(history, cost={"seconds": 1.5, "share": 0.004, "measured": 40, "steps": 40})
    (tmp_path / "run" / "trainmedic.json").write_text(told.to_json())
    return tmp_path / "run"


def test_a_watched_run_is_judged_again_with_what_the_medic_told(logdir: Path) -> None:
    (entry,) = json.loads(run("analyze", logdir, "--format", "json").stdout)["runs"]
    assert (entry["path"], entry["format"]) == (str(logdir), "trainmedic")
    assert entry["cost"]["share"] == 0.004
    assert [finding["code"] for finding in entry["findings"]] == ["TM101"]


def test_the_report_of_a_watched_run_is_shown_as_it_was_given(logdir: Path) -> None:
    result = run("report", logdir)
    assert result.exit_code == 0
    assert "TM101 non-finite" in result.stdout
    assert "watching cost 0.4 % of the time" in result.stdout
    jsonschema.validate(json.loads(run("report", logdir, "--format", "json").stdout), SCHEMA)


def test_a_broken_report_does_not_hide_the_run(logdir: Path) -> None:
    (logdir / "trainmedic.json").write_text('{"version": 1, "runs": [{"findings": [{}]}]}')
    result = run("analyze", logdir)
    assert result.exit_code == 1
    assert "what the medic reported of this run cannot be read" in result.stdout
    assert f"{logdir}: " in error_of(run("report", logdir))


def test_report_takes_names(tmp_path: Path) -> None:
    log = tmp_path / "gan.csv"
    log.write_text("step,G_GAN,D_real\n" + "".join(f"{i},{3 - i / 50},{1 + i / 90}\n" for i in range(80)))
    assert "nothing wrong found" in run("report", log, "--name", "train/loss=G_GAN").stdout
    wrong = run("report", log, "--name", "train/loss=nowhere")
    assert wrong.exit_code == 2
    assert "of the name 'nowhere'" in wrong.stderr


def test_report_takes_the_choice_of_rules(sick: Path) -> None:
    assert "TM101" not in run("report", sick, "--select", "overfitting").stdout.split("not checked")[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_a_directory_is_not_waited_for(healthy: Path) -> None:
    os.mkfifo(healthy.parent / "pipe.log")
    done = subprocess.run(command("analyze", healthy.parent), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "nothing wrong found" in done.stdout


def test_report_of_another_log_judges_it(sick: Path) -> None:
    assert "TM101 non-finite" in run("report", sick).stdout


def test_report_writes_a_page_and_tensorboard_files(logdir: Path, sick: Path, tmp_path: Path) -> None:
    page, board = tmp_path / "report.html", tmp_path / "board"
    assert run("report", logdir, "-o", page, "--tensorboard", board).exit_code == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(board.glob("events.out.tfevents.*"))
    assert run("report", sick, "-o", page, "--format", "json").exit_code == 0
    assert json.loads(page.read_text())["runs"][0]["path"] == str(sick)
    assert "cannot write" in error_of(run("report", sick, "-o", page, "--tensorboard", page / "below"))


def test_report_gives_each_of_several_runs_a_folder_of_tensorboard(sick: Path, healthy: Path, tmp_path: Path) -> None:
    run("report", tmp_path, "-o", tmp_path / "page.html", "--tensorboard", tmp_path / "board")
    folders = sorted(folder.name for folder in (tmp_path / "board").iterdir())
    assert [name[:4] for name in folders] == ["001-", "002-"]
    assert [name[-8:] for name in folders] == ["sick.csv", "lthy.csv"]


# -- the catalogue -----------------------------------------------------------------------------------------------


def test_the_catalogue_says_of_rules_what_the_classes_say() -> None:
    assert [entry["code"] for entry in catalog.rules()] == [rule.code for rule in catalogue()]
    for entry, rule in zip(catalog.rules(), catalogue(), strict=True):
        assert entry["name"] == rule.name
        assert entry["severity"] == rule.severity
        assert entry["root"] == rule.root.name.lower().replace("_", " ")
        assert tuple(entry["needs"]) == rule.needs
        assert tuple(entry["remedies"]) == rule.remedies
        assert tuple(entry["explains"]) == rule.explains
        assert entry["advice"] == rule.advice
        assert entry["sections"] == rule.sections()
        assert_same_fields(entry, rule)


def test_the_catalogue_says_of_remedies_what_the_classes_say() -> None:
    assert [entry["name"] for entry in catalog.remedies()] == [remedy.name for remedy in pharmacy()]
    for entry, remedy in zip(catalog.remedies(), pharmacy(), strict=True):
        assert entry["safety"] == remedy.safety
        assert tuple(entry["treats"]) == remedy.treats
        assert entry["sections"] == remedy.sections()
        assert_same_fields(entry, remedy)


def assert_same_fields(entry: dict[str, Any], model: Any) -> None:
    properties = model.model_json_schema().get("properties", {})
    assert [field["name"] for field in entry["fields"]] == list(properties)
    limits = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}
    for field in entry["fields"]:
        known = properties[field["name"]]
        default = field["default"]
        assert (list(default) if isinstance(default, tuple) else default) == known["default"]
        assert field["description"] == known.get("description", "")
        given = dict(part.split(" ") for part in field["range"].split(" and ") if part)
        assert {limits[sign]: float(bound) for sign, bound in given.items()} == {
            key: known[key] for key in limits.values() if key in known
        }


@pytest.mark.parametrize("what", ["rules", "remedies"])
def test_the_catalogue_is_listed(what: str) -> None:
    listed = run(what)
    entries = json.loads(run(what, "--format", "json").stdout)[what]
    assert listed.exit_code == 0
    assert len(entries) > 3
    for entry in entries:
        assert entry["name"] in listed.stdout


def test_formats_are_listed_and_each_says_why_it_does_not_know_a_file(healthy: Path) -> None:
    listed = run("formats")
    assert "tensorboard    TensorBoard event files\n" in listed.stdout
    told = run("formats", healthy)
    assert (listed.exit_code, told.exit_code) == (0, 0)
    assert "csv            it reads this file\n" in told.stdout
    assert "wandb          it does not begin as a .wandb file\n" in told.stdout
    healthy.write_bytes(b"\0\xff\0\xff")
    assert run("formats", healthy).exit_code == 1
    entries = json.loads(run("formats", healthy, "--format", "json").stdout)["formats"]
    assert {entry["name"]: entry["declines"] for entry in entries}["csv"] == "it is binary"


def test_what_was_taken_for_what_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,my loss,val_loss\n" + "".join(f"{i},{1 / (i + 1)},{1 / (i + 1)}\n" for i in range(20)))
    shown = run("analyze", path).stdout
    assert "names in the log\n  taken for: validation/loss is 'val_loss'\n" in shown
    assert "kept as they are: my loss (what one means says --name train/loss=NAME)" in shown


def test_explain_tells_all_of_a_rule_or_a_remedy() -> None:
    by_code, by_name = run("explain", "tm201"), run("explain", "vanishing-gradient")
    assert by_code.stdout == by_name.stdout
    for heading in ("What it is:", "Why it is bad:", "Usual causes:", "Formula:", "Known limits:", "Source:", "Needs:"):
        assert heading in by_code.stdout
    assert "Thresholds:\n  decades = " in by_code.stdout
    assert "clip-gradients (remedy, safe)" in run("explain", "clip-gradients").stdout
    assert json.loads(run("explain", "TM501", "--format", "json").stdout)["code"] == "TM501"


# -- errors, speed -----------------------------------------------------------------------------------------------


def test_an_unexpected_error_is_one_line_and_a_traceback_only_on_demand(
    healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of all\nthings")

    monkeypatch.setattr("trainmedic.analysis.reports_of", fail)
    monkeypatch.setenv("TRAINMEDIC_DEBUG", "0")
    text = error_of(run("analyze", healthy))
    assert text.startswith(
        "unexpected ZeroDivisionError: of all things; this is a mistake in trainmedic, please report"
    )
    assert isinstance(run("--debug", "analyze", healthy).exception, ZeroDivisionError)


def test_an_interrupted_command_says_so(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainmedic.analysis.reports_of", interrupt)
    result = run("analyze", healthy)
    assert result.exit_code == 130
    assert result.stderr.split() == ["trainmedic:", "interrupted"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from trainmedic.cli import main; main()", *map(str, arguments)]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no shell")
def test_a_reader_that_stops_listening_is_no_error() -> None:
    with subprocess.Popen(command("rules"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def imported(*arguments: object) -> set[str]:
    """The top-level packages that a command imports."""
    with_times = [sys.executable, "-X", "importtime", *command(*arguments)[1:]]
    result = subprocess.run(with_times, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    return {line.split("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines() if line.count("|") == 2}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["rules"], ["remedies"], ["explain", "TM201"]])
def test_the_catalogue_imports_nothing_large(arguments: list[str]) -> None:
    assert not imported(*arguments) & {"torch", "scipy", "tensorboard", "numpy", "pydantic", "rich"}


def test_analyze_imports_neither_torch_nor_tensorboard(sick: Path) -> None:
    assert not imported("analyze", sick) & {"torch", "tensorboard"}


def test_the_sources_are_found_by_their_folder() -> None:
    assert {source.reader.name for source in find(SAMPLES)} == {"csv", "trainer_state"}
