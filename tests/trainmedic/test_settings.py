"""Settings: from a keyword, a file or the project's configuration; whatever is wrong is told in one clear sentence."""

from pathlib import Path
from typing import Any

import pytest

from trainmedic.diagnose.judge import catalogue
from trainmedic.errors import UsageError
from trainmedic.settings import PRESETS, Settings, find_rule


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without configuration."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def thresholds(settings: Settings, code: str) -> dict[str, Any]:
    (rule,) = (rule for rule in settings.configured_rules() if rule.code == code)
    return rule.model_dump()


def test_by_default_every_rule_runs_with_its_own_thresholds() -> None:
    settings = Settings.load()
    assert settings == Settings()
    assert settings.configured_rules() == [rule() for rule in catalogue()]


def test_settings_are_taken_as_they_are() -> None:
    settings = Settings(every=3)
    assert Settings.load(settings) is settings


def test_a_keyword() -> None:
    settings = Settings.load({"every": 5, "select": ["TM101", "dead-relu"], "rules": {"TM301": {"dead_units": 0.25}}})
    assert settings.every == 5
    assert [rule.code for rule in settings.configured_rules()] == ["TM101", "TM301"]
    assert thresholds(settings, "TM301")["dead_units"] == 0.25


def test_rules_by_commas_and_in_any_case() -> None:
    settings = Settings.load({"select": "tm101, Dead-ReLU,overfitting", "ignore": "TM501"})
    assert [rule.code for rule in settings.configured_rules()] == ["TM101", "TM301"]


def test_what_is_ignored_does_not_run() -> None:
    settings = Settings.load({"ignore": ["overfitting"]})
    assert "TM501" not in [rule.code for rule in settings.configured_rules()]
    assert len(settings.configured_rules()) == len(catalogue()) - 1


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('every = 7\nignore = ["TM501"]\n[rules.dead-relu]\ndead_units = 0.75\n')
    for given in (file, str(file)):
        settings = Settings.load(given)
        assert settings.every == 7
        assert thresholds(settings, "TM301")["dead_units"] == 0.75


def test_the_table_in_pyproject(nowhere: Path) -> None:
    (nowhere / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.trainmedic]\ncooldown = 9\n')
    assert Settings.load().cooldown == 9


def test_a_pyproject_that_says_nothing_of_it(nowhere: Path) -> None:
    (nowhere / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    assert Settings.load() == Settings()


def test_the_own_file_comes_before_pyproject(nowhere: Path) -> None:
    (nowhere / "pyproject.toml").write_text("[tool.trainmedic]\ncooldown = 9\n")
    (nowhere / "trainmedic.toml").write_text("cooldown = 11\n")
    assert Settings.load().cooldown == 11


def test_a_keyword_comes_before_any_file(nowhere: Path) -> None:
    (nowhere / "trainmedic.toml").write_text("cooldown = 11\n")
    assert Settings.load({}).cooldown == Settings().cooldown


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().every = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"evry": 1}, "settings: unknown setting 'evry'; did you mean 'every'?"),
        ({"zzz": 1}, "settings: unknown setting 'zzz'"),
        ({1: 2}, "settings: unknown setting 1"),
        ({"every": 0}, "settings: every: Input should be greater than or equal to 1, but got 0"),
        ({"every": "often"}, "settings: every: Input should be a valid integer, unable to parse string as an integer, "
                             "but got 'often'"),
        ({"budget": 2}, "settings: budget: Input should be less than or equal to 1, but got 2"),
        ({"budget": float("nan")}, "settings: budget: Input should be less than or equal to 1, but got nan"),
        ({"trial_steps": 9}, "settings: trial_steps: Input should be greater than or equal to 10, but got 9"),
        ({"select": 3}, "settings: select: Input should be a valid tuple, but got 3"),
        ({"select": [1]}, "settings: select.0: Input should be a valid string, but got 1"),
        (
            {"select": "dead-rel"},
            "settings: select: unknown rule 'dead-rel'; did you mean 'dead-relu'? (see: trainmedic rules)",
        ),
        ({"ignore": ["TM31"]}, "settings: ignore: unknown rule 'TM31'; did you mean 'TM301'? (see: trainmedic rules)"),
        (
            {"rules": {"ded-relu": {}}},
            "settings: rules: unknown rule 'ded-relu'; did you mean 'dead-relu'? (see: trainmedic rules)",
        ),
        ({"rules": 3}, "settings: rules: Input should be a valid dictionary, but got 3"),
        ({"rules": {"dead-relu": 3}}, "settings: rules.dead-relu: Input should be a valid dictionary, but got 3"),
        (
            {"rules": {"dead-relu": {"dead_unit": 1}}},
            "settings: rules.dead-relu: unknown threshold 'dead_unit'; did you mean 'dead_units'?",
        ),
        (
            {"rules": {"TM301": {"dead_units": "half"}}},
            "settings: rules.dead-relu.dead_units: Input should be a valid number, unable to parse string as a number, "
            "but got 'half'",
        ),
        (
            {"rules": {"TM301": {}, "dead-relu": {}}},
            "settings: rules: 'TM301' and 'dead-relu' are the same rule; give its thresholds once",
        ),
        (
            {"ignore_remedies": "rewnd"},
            "settings: ignore_remedies: unknown remedy 'rewnd'; did you mean 'rewind'? (see: trainmedic remedies)",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place_and_the_nearest_right_name(given: dict[Any, Any], text: str) -> None:
    with pytest.raises(UsageError) as error:
        Settings.load(given)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("evry = 1", "trainmedic.toml: unknown setting 'evry'; did you mean 'every'?"),
        (
            "[rules.dead-relu]\ndead_unit = 1",
            "trainmedic.toml: rules.dead-relu: unknown threshold 'dead_unit'; did you mean 'dead_units'?",
        ),
        (
            "[rules.ded-relu]",
            "trainmedic.toml: rules: unknown rule 'ded-relu'; did you mean 'dead-relu'? (see: trainmedic rules)",
        ),
    ],
)
def test_a_mistake_in_a_file_names_the_file(nowhere: Path, content: str, text: str) -> None:
    (nowhere / "trainmedic.toml").write_text(content)
    with pytest.raises(UsageError) as error:
        Settings.load()
    assert str(error.value) == text


@pytest.mark.parametrize("content", ["tool = 3", "[tool]\ntrainmedic = [1, 2]", '[tool]\ntrainmedic = "yes"'])
def test_a_pyproject_where_a_table_should_be_and_is_not(nowhere: Path, content: str) -> None:
    (nowhere / "pyproject.toml").write_text(content)
    with pytest.raises(UsageError, match=r"^pyproject\.toml: tool.* must be a table, but got "):
        Settings.load()


def test_a_file_that_is_no_toml(nowhere: Path) -> None:
    (nowhere / "trainmedic.toml").write_text("every = = 1")
    with pytest.raises(UsageError, match=r"^trainmedic\.toml: cannot be read as TOML: .*line 1"):
        Settings.load()
    (nowhere / "trainmedic.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"^trainmedic\.toml: cannot be read as TOML: "):
        Settings.load()


def test_a_file_that_is_not_there(nowhere: Path) -> None:
    with pytest.raises(UsageError, match=r"^settings file 'mine\.toml' does not exist$"):
        Settings.load("mine.toml")


def test_something_else_entirely() -> None:
    with pytest.raises(UsageError, match=r"^settings must be a Settings, a dict or a path, but got int$"):
        Settings.load(3)  # type: ignore[arg-type]


def test_a_rule_is_found_by_code_or_name() -> None:
    for rule in catalogue():
        assert find_rule(rule.code) is find_rule(rule.code.lower()) is find_rule(rule.name) is rule


def test_suppressions_reach_their_rules_only() -> None:
    given = {"suppress": [{"rule": "TM301", "where": "encoder.*"}, {"rule": "dead-relu", "steps": "0-9"}]}
    by_code = {rule.code: rule.suppressed for rule in Settings.load(given).configured_rules()}
    assert [str(one) for one in by_code["TM301"]] == ["TM301 of encoder.*", "dead-relu in steps 0-9"]
    assert not any(suppressed for code, suppressed in by_code.items() if code != "TM301")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rule": "dead-rely"}, "suppress: unknown rule 'dead-rely'; did you mean 'dead-relu'?"),
        ({"rule": "TM301", "wher": "a"}, "suppress: unknown key 'wher'; did you mean 'where'?"),
        ({"where": "a"}, "suppress.0.rule: Field required"),
        ({"rule": "TM301", "steps": "9"}, "suppress.0.steps: must be a range of steps"),
        ("TM301", "suppress: must be tables with at least a rule, but got 'TM301'"),
    ],
)
def test_a_wrong_suppression_is_one_clear_error(given: Any, text: str) -> None:
    with pytest.raises(UsageError) as error:
        Settings.load({"suppress": [given]})
    assert f"settings: {text}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_preset_leaves_out_what_means_nothing_there() -> None:
    codes = [rule.name for rule in Settings.load({"preset": "gan"}).configured_rules()]
    assert "loss-spike" not in codes
    assert {"non-finite", "dead-relu"} <= set(codes)
    assert [rule.code for rule in Settings.load({"preset": "gan", "select": "TM402"}).configured_rules()] == ["TM402"]


def test_presets_name_rules_and_are_named_rightly() -> None:
    assert [find_rule(name).name for names in PRESETS.values() for name in names]
    with pytest.raises(UsageError, match="unknown preset 'finetuning'; did you mean 'fine-tuning'"):
        Settings.load({"preset": ["finetuning"]})
