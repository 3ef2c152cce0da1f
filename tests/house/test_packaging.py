"""What is listed is what is there, and a wheel holds the three packages and nothing else."""

import configparser
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from destseg_deploy.at_start import COMMANDS
from destseg_export.cpp_project import LIBRARY

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {".": "destseg_deploy", "export": "destseg_export", "benchmarks": "destseg_bench"}


@pytest.fixture(scope="module")
def config():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_packages_listed_are_packages_on_disk(config):
    listed = set(config["options"]["packages"].split())
    found = set()
    for root, package in ROOTS.items():
        base = ROOT / root
        for init in (base / package).rglob("__init__.py"):
            found.add(".".join(init.parent.relative_to(base).parts))
    assert listed == found | {"destseg_export.cpp"}  # sources in C++, no Python


def test_typed_markers_are_there(config):
    for root, package in ROOTS.items():
        assert (ROOT / root / package / "py.typed").is_file()
        listed = config["options.package_data"][package].replace(",", " ").split()
        assert "py.typed" in listed
        assert all((ROOT / root / package / name).is_file() for name in listed)


def test_every_command_can_be_loaded(config):
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    names = {line.split("=")[0].strip() for line in lines}
    installed = {e.name: e for e in entry_points(group="console_scripts") if e.name in names}
    assert set(installed) == names, "install again: make install"
    for entry in installed.values():
        assert callable(entry.load())


def test_all_commands_end_quietly_while_they_are_imported(config):
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    names = {line.split("=")[0].strip() for line in lines}
    assert names == {"destseg", *(f"destseg-{one}" for one in COMMANDS.split())}


def test_a_wheel_holds_exactly_the_three_packages(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    ignore = {".git", ".venv", "build", "demo"}
    tracked = [
        p for p in ROOT.iterdir() if p.name not in ignore and not p.name.endswith("egg-info")
    ]
    source.mkdir()
    for path in tracked:
        (source / path.name).symlink_to(path)
    command = [
        sys.executable,
        "-c",
        "from setuptools.build_meta import build_wheel as b; print(b('dist'))",
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = (source / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(ROOTS.values())
    python = {name for name in names if name.endswith(".py")}
    expected = {
        str(path.relative_to(ROOT / root))
        for root, package in ROOTS.items()
        for path in (ROOT / root / package).rglob("*.py")
    }
    assert python == expected
    sources = {
        str(path.relative_to(ROOT / "cpp"))
        for name in LIBRARY
        for path in [ROOT / "cpp" / name, *(ROOT / "cpp" / name).rglob("*")]
        if path.is_file()
    }
    prefix = "destseg_export/cpp/"
    packed = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    assert packed == sources | {f"example/{name.name}" for name in (ROOT / "cpp/example").iterdir()}
