"""The README: its example runs as it stands, and its tables name what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainmedic.diagnose.judge import catalogue
from trainmedic.remedies.remedy import pharmacy
from trainmedic.settings import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|(.*)\|$", section, flags=re.MULTILINE)
    return [[cell.strip(" `") for cell in re.split(r"(?<!\\)\|", row)] for row in rows[2:]]


def test_the_example_finds_what_it_says(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # more threads make so small a net slower
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TM201 vanishing-gradient" in done.stdout
    assert {"history.npz", "trainmedic.json"} <= {file.name for file in (tmp_path / "runs" / "first").iterdir()}


def test_the_tables_name_every_rule_and_remedy() -> None:
    assert [row[:2] for row in table("The rules")] == [[rule.code, rule.name] for rule in catalogue()]
    assert {row[0]: row[1] for row in table("The remedies")} == {each.name: each.safety.value for each in pharmacy()}


def test_the_table_of_settings_is_complete_and_its_defaults_are_right() -> None:
    rows = {row[0]: row[1] for row in table("Settings")}
    assert list(rows) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, bool):
            assert rows[name] == ("true" if field.default else "false"), name
        elif isinstance(field.default, float | int):
            assert float(rows[name]) == field.default, name


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))
def test_links_to_files_lead_somewhere(target: str) -> None:
    assert (ROOT / target).is_file()
