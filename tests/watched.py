"""Runs a program and says what it asked of the network, and what it left in the home folder.

Python's sockets are guarded, which works everywhere. Native code passes that guard, so the program
runs under strace, too, where that exists.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

GUARD = """
import os, socket
log = os.environ["SOCKET_LOG"]
def refuse(name):
    def call(*arguments, **options):
        with open(log, "a") as file:
            print(name, arguments, file=file)
        raise OSError("guarded")
    return call
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse(name))
socket.socket.connect = refuse("connect")
"""
"""A sitecustomize: what Python code asks of the network is noted and refused."""

CALLS = re.compile(
    r'connect\(.*sa_family=AF_INET6?\b(?!.*(?:inet_addr\("127\.|"::1"))'  # a host elsewhere
    r"|sendto\(.*sa_family=AF_INET"
    r'|"/etc/resolv\.conf"'  # a name is looked up
)

HIDING = ("XDG_", "ORT_", "CI", "TF_BUILD", "JENKINS_URL")
"""Variables with which a program asks less of the network, or leaves its files elsewhere."""

OWN = {".cache/matplotlib", ".config/matplotlib"}
"""Matplotlib's list of fonts: no identity, and made by every program that draws with it."""


class Watched:
    """Runs programs under the guard and strace, in a home folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.home, self.log, self.trace = folder / "home", folder / "sockets", folder / "trace"
        (folder / "guard").mkdir()
        (folder / "guard/sitecustomize.py").write_text(GUARD)
        self.home.mkdir()
        self.log.touch()
        self.strace = strace_works()
        kept = {n: v for n, v in os.environ.items() if not n.startswith(HIDING)}
        self.env = {
            **kept,
            "HOME": str(self.home),
            "SOCKET_LOG": str(self.log),
            "PYTHONPATH": os.pathsep.join(
                [str(folder / "guard"), *(str(ROOT / p) for p in ("", "export", "benchmarks"))]
            ),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line of a shell."""
        traced = ["strace", "-f", "--seccomp-bpf", "-e", "trace=%network,openat"]
        line = ["sh", "-c", command]
        return subprocess.run(
            [*traced, "-o", str(self.trace), *line] if self.strace else line,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def seen(self) -> list[str]:
        """Return what was asked of the network, and what was left in the home folder."""
        asked = self.log.read_text().splitlines()
        if self.strace:
            asked += [line for line in self.trace.read_text().splitlines() if CALLS.search(line)]
        files = (p.relative_to(self.home) for p in self.home.rglob("*") if p.is_file())
        return asked + [str(p) for p in files if str(Path(*p.parts[:2])) not in OWN]


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode == 0
