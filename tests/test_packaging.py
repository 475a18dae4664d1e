"""The package as users get it: complete by every way of building it, and nothing outside the name ``trainmedic``.

The folders lie at the root and are installed under one name, which setuptools has to be told folder by folder: what
is forgotten there would be missing in the wheel, silently.
"""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
FOLDERS = ("hooks", "readers", "diagnose", "remedies", "reports")
DATA = (".json", ".typed", ".js", ".css", ".txt")
SKIPPED = (".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "benchmarks", "runs")
WAYS = ("direct", "through-sdist")


def package_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(name inside the package, file) of every source and data file; links are not followed."""
    for folder in ("trainmedic", *FOLDERS):
        for home, folders, files in os.walk(root / folder):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in files:
                if name.endswith((".py", *DATA)):
                    file = Path(home, name)
                    inside = file.relative_to(root)
                    yield str(inside if folder == "trainmedic" else Path("trainmedic", inside)), file


def wanted() -> dict[str, Path]:
    return dict(package_files(ROOT))


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel by each way of building it, from a copy: building in the checkout would leave files in it."""
    source = tmp_path_factory.mktemp("source") / "copy"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*SKIPPED))
    found = {}
    for way in WAYS:
        out = source / "dist" / way
        only = ["--wheel"] if way == "direct" else []
        run(sys.executable, "-m", "build", "--no-isolation", *only, "--outdir", out, cwd=source)
        (found[way],) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target)
    run(*pip, wheels["through-sdist"], cwd=target)
    return target


def test_every_folder_with_python_files_is_a_listed_package_and_the_other_way_round() -> None:
    folders = {str(Path(name).parent).replace(os.sep, ".") for name in wanted() if name.endswith(".py")}
    assert sorted(CONFIG["packages"]) == sorted(folders)


def test_every_package_that_lies_elsewhere_has_its_folder_in_package_dir() -> None:
    inside = {name: name.removeprefix("trainmedic.").replace(".", "/") for name in CONFIG["packages"]}
    at = {name: folder for name, folder in inside.items() if folder.partition("/")[0] in ("trainmedic", *FOLDERS)}
    assert CONFIG["package-dir"] == at


def test_every_package_folder_is_a_regular_package() -> None:
    assert [folder for folder in CONFIG["package-dir"].values() if not (ROOT / folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_link_inside_the_package_leads_to_the_folder(folder: str) -> None:
    link = ROOT / "trainmedic" / folder
    if not link.is_symlink():
        pytest.skip("no links here: an unpacked sdist, or a system without them")
    assert os.readlink(link) == f"../{folder}"  # an absolute link would break in every other checkout
    assert link.resolve() == (ROOT / folder).resolve()


@pytest.mark.parametrize("way", WAYS)
def test_the_wheel_holds_every_file_unchanged(wheels: dict[str, Path], way: str) -> None:
    with zipfile.ZipFile(wheels[way]) as wheel:
        inside = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("trainmedic/")}
    assert sorted(inside) == sorted(wanted())
    assert [name for name, file in wanted().items() if inside[name] != file.read_bytes()] == []


@pytest.mark.parametrize("way", WAYS)
def test_the_wheel_takes_no_other_name(wheels: dict[str, Path], way: str) -> None:
    with zipfile.ZipFile(wheels[way]) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"trainmedic"}


def test_every_module_imports_where_only_the_wheel_is(installed: Path, tmp_path: Path) -> None:
    sources = [name for name in wanted() if name.endswith(".py") and not name.endswith("__main__.py")]
    modules = [name[:-3].replace(os.sep, ".").removesuffix(".__init__") for name in sources]
    # The checkout itself may be on this interpreter's path as an editable install: then it is not what is looked at.
    code = f"""
import importlib, sys
sys.path.insert(0, {str(installed)!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
for name in {modules!r}:
    assert importlib.import_module(name).__file__.startswith({str(installed)!r}), name
"""
    run(sys.executable, "-P", "-c", code, cwd=tmp_path)


def test_the_command_is_installed(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["direct"]) as wheel:
        (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "trainmedic = trainmedic.cli:main" in wheel.read(entry_points).decode()


@pytest.mark.parametrize("way", WAYS)
def test_tensorboard_finds_the_plugin_and_the_page_its_assets(wheels: dict[str, Path], way: str) -> None:
    with zipfile.ZipFile(wheels[way]) as wheel:
        (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        plugins = wheel.read(entry_points).decode().partition("[tensorboard_plugins]\n")[2].split("\n\n")[0]
        assets = {name.removeprefix("trainmedic/reports/assets/") for name in wheel.namelist() if "/assets/" in name}
    assert plugins.strip() == "medic = trainmedic.reports.plugin:MedicPlugin"
    assert {"uPlot.js", "uPlot.LICENSE.txt", "base.js", "report.js", "plugin.js", "medic.css", "viridis.json"} <= assets
