"""What is installed is what is pinned, and the lock file of a line PC agrees with the pins."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

packaging = pytest.importorskip("packaging.requirements")

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("all", "dev", "docs", "rtx", "openvino", "nncf", "ray")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> set[tuple[str, str]]:
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([\w.+]+)", text, re.MULTILINE)
    return {(canonical(name), version) for name, version in found}


def brought(name: str, extras: tuple[str, ...]) -> set[tuple[str, str]]:
    """Return the installed packages that one needs, and those that they need."""
    found, todo = set(), [(name, extras)]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            one = distribution(name)
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        found.add((canonical(name), one.version.split("+")[0]))
        for line in one.requires or ():
            need = packaging.Requirement(line)
            wanted = need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in extras or ("",)
            )
            if wanted:
                todo.append((canonical(need.name), tuple(sorted(need.extras))))
    return found


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text())
LOCK = (ROOT / "requirements-runtime.lock").read_text()


def test_every_installed_package_is_pinned():
    """26 of 72 were."""
    needed = brought("destseg-deploy", EXTRAS)
    ours = {pin for pin in needed if pin[0] == "destseg-deploy"}
    assert len(needed) > 20, "control: packages are found"
    assert needed - ours <= CONSTRAINTS


def test_the_lock_is_of_the_pinned_versions():
    assert pins(LOCK) <= CONSTRAINTS
    assert brought("onnxruntime", ()) | brought("opencv-python-headless", ()) <= pins(LOCK)


def test_every_file_of_the_lock_has_a_hash():
    entries = re.split(r"^(?=[a-z0-9])", re.sub(r"^#.*\n", "", LOCK, flags=re.M), flags=re.M)
    entries = [entry for entry in entries if entry.strip()]
    assert len(entries) == len(pins(LOCK))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
