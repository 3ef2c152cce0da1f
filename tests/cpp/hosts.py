"""Programs of a user: compiled against the installed library, and run beside it."""

import os
import subprocess
from pathlib import Path

from tests.cpp.library import run

COMPILERS = {".c": ("cc", "-std=c99"), ".cpp": ("c++", "-std=c++17")}


def compile_host(prefix: Path, source: Path, text: str) -> Path:
    """Write a program's source and compile it; warnings are errors."""
    source.write_text(text, encoding="utf-8")
    (library,) = prefix.glob("lib*/**/libdestseg.so")
    flags = ["-Wall", "-Wextra", "-Werror", "-I", prefix / "include"]
    program = source.with_suffix("")
    links = ["-L", library.parent, "-ldestseg", f"-Wl,-rpath,{library.parent}"]
    run(*COMPILERS[source.suffix], *flags, source, "-o", program, *links)
    return program


def run_host(program: Path, *arguments: object, **environment: str) -> list[str]:
    """Run a program in its folder to its end; return the lines that it printed."""
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=program.parent,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.splitlines()
