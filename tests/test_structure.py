"""Who may import whom, and what must not be loaded: imports go one way, and the command line starts without torch."""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RECORD = ("trainmedic.errors", "trainmedic.history", "trainmedic.buckets", "trainmedic.__version__")
"""What everybody may import."""

MAY_IMPORT = {
    "hooks": (),
    "readers": (),
    "diagnose": (),
    "remedies": ("trainmedic.diagnose", "trainmedic.hooks"),
    "reports": ("trainmedic.diagnose", "trainmedic.remedies.change", "trainmedic.remedies.remedy"),
}
"""Besides itself. ``trainmedic``'s own modules may import everything."""

WITHOUT_TORCH = ("diagnose", "readers", "reports")
HEAVY = ("torch", "scipy")
COMMANDS = (["--help"], ["rules"], ["remedies"], ["explain", "TM201"], ["explain", "clip-gradients"])


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path, text: str | None = None) -> Iterator[str]:
    """The full name of everything that a file imports, wherever in it, also for the type checker alone."""
    for node in ast.walk(ast.parse(text or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                folder = path.relative_to(ROOT).parts[: -node.level]
                home = ".".join(
                    (*(() if folder[:1] == ("trainmedic",) else ("trainmedic",)), *folder, *home.split("."))
                )
            yield from (f"{home.rstrip('.')}.{alias.name}" for alias in node.names)


def lies_in(name: str, homes: tuple[str, ...]) -> bool:
    return any(name == home or name.startswith(home + ".") for home in homes)


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after ``code``."""
    tell = "import json, sys\nprint('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tell}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder: str) -> None:
    allowed = (f"trainmedic.{folder}", *MAY_IMPORT[folder], *RECORD)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in imports(path)
        if lies_in(name, ("trainmedic",)) and not lies_in(name, allowed) and name != "trainmedic"
    ]
    assert wrong == []


@pytest.mark.parametrize("module", ["history", "errors"])
def test_the_record_knows_nobody(module: str) -> None:
    found = set(imports(ROOT / "trainmedic" / f"{module}.py"))
    assert {name for name in found if lies_in(name, ("trainmedic",)) and not lies_in(name, RECORD)} == set()
    assert {name for name in found if lies_in(name, HEAVY)} == set()


@pytest.mark.parametrize("folder", ["trainmedic", *MAY_IMPORT, "benchmarks"])
def test_folders_are_imported_under_the_one_name(folder: str) -> None:
    wrong = [f"{path}: {name}" for path in sources(folder) for name in imports(path) if lies_in(name, (*MAY_IMPORT,))]
    assert wrong == []


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_no_file_imports_torch(folder: str) -> None:
    assert [str(path) for path in sources(folder) for name in imports(path) if lies_in(name, ("torch",))] == []


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_importing_all_of_it_loads_no_torch(folder: str) -> None:
    names = [".".join(("trainmedic", *path.relative_to(ROOT).with_suffix("").parts)) for path in sources(folder)]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))"
    assert "torch" not in loaded_by(code)


def test_changes_and_treatments_load_no_torch() -> None:
    assert "torch" not in loaded_by("import trainmedic.remedies.change, trainmedic.remedies.remedy")


def test_importing_every_remedy_loads_no_torch() -> None:
    """Each does so only when it is used: advice for a log needs the acts' names and codes, not their tools."""
    assert "torch" not in loaded_by("from trainmedic.remedies.remedy import pharmacy\nassert pharmacy()")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_catalogue_is_shown_without_torch_and_scipy(command: list[str]) -> None:
    code = (
        f"from trainmedic.cli import main\ntry: main({command!r})\nexcept SystemExit as end: assert not end.code, end"
    )
    assert loaded_by(code).isdisjoint(HEAVY)


def test_no_public_name_is_also_a_folder() -> None:
    import trainmedic

    taken = {name for name in trainmedic.__all__ if importlib.util.find_spec(f"trainmedic.{name}") is not None}
    assert taken == set()


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("hooks/x.py", "import trainmedic.remedies.run as r", ["trainmedic.remedies.run"]),
        ("hooks/x.py", "from trainmedic.history import Layer", ["trainmedic.history.Layer"]),
        ("hooks/x.py", "from . import y", ["trainmedic.hooks.y"]),
        ("diagnose/rules/x.py", "from ..rule import Rule", ["trainmedic.diagnose.rule.Rule"]),
        ("trainmedic/x.py", "from .history import Layer", ["trainmedic.history.Layer"]),
        ("hooks/x.py", "def f():\n    import torch", ["torch"]),
    ],
)
def test_these_tests_see_imports(path: str, text: str, expected: list[str]) -> None:
    assert list(imports(ROOT / path, text)) == expected
