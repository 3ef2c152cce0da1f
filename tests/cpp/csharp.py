"""Compiles C# and runs it, with Mono."""

import os
import subprocess
from pathlib import Path

from tests.cpp.library import run


def compile_(target: Path, *options: object) -> None:
    """Compile sources to a program or, with ``-target:library``, an assembly."""
    run("mcs", "-langversion:7", "-warn:4", "-warnaserror", f"-out:{target}", *options)


def mono(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program that lies beside the library, to its end."""
    command = ["mono", str(program), *map(str, arguments)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(program.parent)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, encoding="utf-8"
    )
