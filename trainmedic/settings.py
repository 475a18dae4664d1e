"""What a user may set, from a keyword, a file, or the project's own configuration.

Rule thresholds are not listed here: they are the fields of the rules, so that there is one place for each.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trainmedic.diagnose import Rule, Suppression
from trainmedic.diagnose.judge import catalogue
from trainmedic.errors import UsageError, nearest
from trainmedic.remedies.remedy import pharmacy

# What a number means in an ordinary training from scratch, and not in these.
PROGRESS = ("divergence", "loss-spike", "loss-oscillation", "plateau", "slow-convergence", "not-learning")
FIT = ("underfitting", "overfitting", "validation-mismatch", "class-imbalance")
PRESETS: dict[str, tuple[str, ...]] = {
    "fine-tuning": ("bad-initialization", "learning-rate-too-low", "slow-convergence", "frozen-layer"),
    "gan": (*PROGRESS, *FIT),
    "rl": (*PROGRESS, *FIT, "noisy-gradient", "unnormalized-input", "collapsed-output"),
}
"""By kind of training, the rules that have no meaning there: weights that come trained and shall hardly move; losses of
players, which measure no progress; data that an agent makes itself, with targets that move."""


class Settings(BaseModel):
    """Settings of a watched run or an analysis. Frozen; every field has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    select: tuple[str, ...] = Field((), description="rules to run, by code or name; empty means all")
    ignore: tuple[str, ...] = Field((), description="rules not to run, by code or name")
    preset: tuple[str, ...] = Field((), description="kinds of training whose meaningless rules are left out")
    suppress: tuple[Suppression, ...] = Field((), description="what not to tell: a rule, where, in which steps, why")
    rules: dict[str, dict[str, Any]] = Field({}, description="thresholds by rule, by code or name")
    every: int | None = Field(None, ge=1, description="measure every N-th step; unset: as often as the budget allows")
    budget: float = Field(0.01, gt=0, le=1, description="share of the step time that watching may cost")
    dead_after: int = Field(1_000, ge=1, description="samples that a unit must have been silent for, to count as dead")
    activation_sample: int = Field(
        16_384, ge=64, description="elements of an output, at most, that mean, spread and shares are taken of"
    )
    kept_batches: int = Field(
        40, ge=0, description="batches kept for trials; every fourth is set apart, to judge on and never to train on"
    )
    kept_batches_mb: float = Field(64.0, ge=0, description="size that the kept batches may have together, in MB")
    states_mb: float = Field(
        4_000.0, ge=0, description="host memory that saved states may have together, in MB; beyond it they are files"
    )
    cooldown: int = Field(50, ge=0, description="steps without a new treatment after one was decided")
    trial_budget: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the run's steps that controlled trials may take, for a warning; 100 at least",
    )
    trial_budget_failing: float = Field(0.5, ge=0, description="the same for an error: such a run is worth little")
    trial_steps: int = Field(60, ge=10, description="steps that a treatment is watched for before it is kept or undone")
    max_treatments: int = Field(8, ge=0, description="treatments tried in one run, at most")
    stop_when_lost: bool = Field(False, description="stop a run that is failing when nothing helped")
    ignore_remedies: tuple[str, ...] = Field((), description="remedies never to apply, by name")

    @field_validator("select", "ignore", "preset", "ignore_remedies", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("select", "ignore")
    @classmethod
    def _known_rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            find_rule(name)
        return value

    @field_validator("preset")
    @classmethod
    def _known_presets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PRESETS:
                raise UsageError(f"unknown preset {name!r}{nearest(name, PRESETS)} (there are {', '.join(PRESETS)})")
        return value

    @field_validator("suppress", mode="before")
    @classmethod
    def _tables(cls, value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(one, Mapping | Suppression):
                raise UsageError(f"must be tables with at least a rule, but got {one!r:.60} (whole rules: ignore)")
            for key in one if isinstance(one, Mapping) else ():
                if key not in Suppression.model_fields:
                    raise UsageError(f"unknown key {key!r}{nearest(str(key), Suppression.model_fields)}")
        return value

    @field_validator("suppress")
    @classmethod
    def _known_suppressed(cls, value: tuple[Suppression, ...]) -> tuple[Suppression, ...]:
        for one in value:
            find_rule(one.rule)
        return value

    @field_validator("ignore_remedies")
    @classmethod
    def _known_remedies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = [remedy.name for remedy in pharmacy()] if value else []
        for name in value:
            if name not in known:
                raise UsageError(f"unknown remedy {name!r}{nearest(name, known)} (see: trainmedic remedies)")
        return value

    @field_validator("rules")
    @classmethod
    def _each_rule_once(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        names: dict[type[Rule], str] = {}
        for name in value:
            other = names.setdefault(find_rule(name), name)
            if other != name:
                raise UsageError(f"{other!r} and {name!r} are the same rule; give its thresholds once")
        return value

    def configured_rules(self) -> list[Rule]:
        """The rules to run, with their thresholds and what of them is suppressed. What is selected beats a preset."""
        thresholds = {find_rule(name): fields for name, fields in self.rules.items()}
        selected = {find_rule(name) for name in self.select}
        meaningless = {find_rule(name) for preset in self.preset for name in PRESETS[preset]}
        left_out = {find_rule(name) for name in self.ignore} | (meaningless - selected)
        run = [rule for rule in catalogue() if rule in (selected or catalogue()) and rule not in left_out]
        suppressed = {rule: [one for one in self.suppress if find_rule(one.rule) is rule] for rule in run}
        return [_configured(rule, thresholds.get(rule, {})).suppressing(suppressed[rule]) for rule in run]

    @classmethod
    def load(cls, given: "Settings | Mapping[str, Any] | str | os.PathLike[str] | None" = None) -> Self:
        """Settings from a ``Settings``, a mapping or a TOML file; by default from the working directory.

        Without ``given``, ``trainmedic.toml`` is read if there is one, else ``[tool.trainmedic]`` in
        ``pyproject.toml``. An unknown key, rule or value is one ``UsageError`` with the nearest right name.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            return cls._validated(given, "settings")
        if isinstance(given, str | os.PathLike):
            if not Path(given).is_file():
                raise UsageError(f"settings file {os.fspath(given)!r} does not exist")
            return cls._from_file(Path(given))
        if given is not None:
            raise UsageError(f"settings must be a Settings, a dict or a path, but got {type(given).__name__}")
        for name in ("trainmedic.toml", "pyproject.toml"):
            if Path(name).is_file():
                return cls._from_file(Path(name))
        return cls()

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{path}: cannot be read as TOML: {error}") from error
        if path.name == "pyproject.toml":
            return cls._validated(_table(content, path, "tool", "trainmedic"), str(path))
        return cls._validated(content, str(path))

    @classmethod
    def _validated(cls, content: Mapping[str, Any], source: str) -> Self:
        for key in content:
            if key not in cls.model_fields:
                raise UsageError(f"{source}: unknown setting {key!r}{nearest(str(key), cls.model_fields)}")
        try:
            settings = cls.model_validate(dict(content))
        except ValidationError as error:
            raise UsageError(f"{source}: {first_error(error)}") from error
        try:
            settings.configured_rules()  # thresholds are checked where they are given, not where they are used
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error
        return settings


def find_rule(name: str) -> type[Rule]:
    """The rule with this code or name; ``UsageError`` with the nearest right one otherwise."""
    for rule in catalogue():
        if name.lower() in (rule.code.lower(), rule.name):
            return rule
    known: Iterable[str] = [word for rule in catalogue() for word in (rule.code, rule.name)]
    raise UsageError(f"unknown rule {name!r}{nearest(name, known)} (see: trainmedic rules)")


def first_error(error: ValidationError) -> str:
    """The first complaint of a validation, in one line: where, what was expected, what was given."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    told = first["type"] == "value_error" or not isinstance(first["input"], str | int | float)
    return f"{where}: {text}" if told else f"{where}: {text}, but got {first['input']!r}"


def _table(content: Mapping[str, Any], path: Path, *names: str) -> Mapping[str, Any]:
    """The table within tables of this name, empty where there is none."""
    for depth, name in enumerate(names, start=1):
        content = content.get(name, {})
        if not isinstance(content, Mapping):
            raise UsageError(f"{path}: {'.'.join(names[:depth])} must be a table, but got {content!r:.60}")
    return content


def _configured(rule: type[Rule], thresholds: Mapping[str, Any]) -> Rule:
    for key in thresholds:
        if key not in rule.model_fields:
            raise UsageError(f"rules.{rule.name}: unknown threshold {key!r}{nearest(key, rule.model_fields)}")
    try:
        return rule(**thresholds)
    except ValidationError as error:
        raise UsageError(f"rules.{rule.name}.{first_error(error)}") from error
