"""The pages that people read, and the commands and programs in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from destseg_bench.cli import bench
from destseg_deploy.cli.evaluate import evaluate
from destseg_deploy.cli.main import main
from destseg_deploy.cli.page import page
from destseg_deploy.cli.predict import predict
from destseg_deploy.cli.report import report
from destseg_deploy.cli.sample import sample
from destseg_deploy.cli.threshold import threshold
from destseg_deploy.cli.train import train
from destseg_export.cli import export

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path: path.read_text("utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "benchmarks/README.md",
        ROOT / "cpp/README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
TEXT = "\n".join(PAGES.values())
COMMANDS: dict[str, click.Command] = {
    "destseg-train": train,
    "destseg-evaluate": evaluate,
    "destseg-predict": predict,
    "destseg-threshold": threshold,
    "destseg-sample": sample,
    "destseg-report": report,
    "destseg-page": page,
    "destseg-export": export,
    "destseg-bench": bench,
    "destseg": main,
}


def blocks(language: str, text: str = TEXT) -> list[str]:
    """Return the code of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def shell_lines(text: str = TEXT) -> list[str]:
    """Return the command lines of blocks, each once; PowerShell's with ``/`` in paths."""
    code = "\n".join(blocks("sh", text)) + "\n"
    code += "\n".join(blocks("powershell", text)).replace("\\", "/")
    lines = [part.strip() for line in code.splitlines() for part in line.split("&&")]
    words = [shlex.split(line, comments=True) for line in lines]
    return list(dict.fromkeys(shlex.join(line) for line in words if line))


def command_lines(text: str = TEXT) -> list[str]:
    """Return the lines of our commands, each once: those of blocks and those within sentences."""
    inline = (" ".join(found.split()) for found in re.findall(r"`(destseg(?:-\w+)? [^`]+)`", text))
    ours = [line for line in shell_lines(text) if re.match(r"destseg\b", line)]
    told = [line for line in inline if "COMMAND" not in line and not line.endswith(("-h", "-all"))]
    return list(dict.fromkeys([*ours, *told]))


def resolve(line: str) -> tuple[str, click.Command, list[str]]:
    """Return the name of a line's command, the command itself, and its words."""
    name, *words = shlex.split(line)
    command = COMMANDS[name]
    while words and isinstance(command, click.Group):
        below = command.get_command(click.Context(command), words[0])
        if below is None:
            break
        command, name, words = below, f"{name} {words[0]}", words[1:]
    return name, command, words
