"""The machine, versions and command behind a number. No result is written without them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

VERSION = "0.1.0"
"""This project's version, as in setup.cfg. A copy that is not installed has no package metadata."""

COMMIT = "DESTSEG_COMMIT"
"""Environment variable that names the commit, for a copy of the files elsewhere."""

PACKAGES = (
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "Pillow",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "triton",
    "safetensors",
    "cuda-core",
    "cupy-cuda13x",
    "nvidia-cuda-nvrtc",
    "nvidia-cudnn-cu13",
    "pycuda",
    "matplotlib",
    "tensorboard",
)


def allowed_cores() -> list[int]:
    """Return the logical processors that this process may run on, counted from 0."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_name() -> str:
    """Return the processor's name as its maker gives it, such as ``AMD EPYC``.

    Python's own answer is empty on Linux, and a family number on Windows. Where the maker gives
    none, as on ARM, this is the name of the architecture.
    """
    if sys.platform == "win32":
        return _registry_name() or platform.machine()
    return _cpuinfo_name() or platform.machine()


def _cpuinfo_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, None)


if sys.platform == "win32":
    import winreg

    def _registry_name() -> str | None:
        place = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except OSError:
            return None


def describe_environment() -> dict[str, Any]:
    """Return command, time, commit, hardware and versions, ready for JSON."""
    return {
        "command": " ".join(_without_folder(word) for word in sys.argv),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpu": _gpu(),
        "gpu_clocks": _gpu_clocks(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"destseg-deploy": VERSION}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _without_folder(word: str) -> str:
    """Return a word of a command; of an absolute path, which no other machine has, its name."""
    return Path(word).name if Path(word).is_absolute() else word


def _commit() -> str | None:
    """Return the checkout's commit, with ``+`` when files differ from it.

    What ``COMMIT`` names comes first: a copy may bring an older repository along. The repository
    must hold this file, because a copy may lie inside another project's repository.
    """
    folder = str(Path(__file__).parent)
    if named := os.environ.get(COMMIT):
        return named
    if _output("git", "-C", folder, "ls-files", "--error-unmatch", __file__) is None:
        return None
    head = _output("git", "-C", folder, "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", folder, "status", "--porcelain", "--untracked-files=no")
    return head if head is None or not changed else f"{head}+"


def _gpu() -> str | None:
    return _query_gpu("name,driver_version")


def _gpu_clocks() -> str | None:
    """Return the clocks now and at most, in MHz, and the power limit, as nvidia-smi writes them."""
    return _query_gpu("clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit")


def _query_gpu(fields: str) -> str | None:
    return _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def _memory_gib() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _output(*command: str) -> str | None:
    """Return what a program prints, or None when it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
