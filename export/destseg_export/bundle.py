"""A folder with all that a line PC needs: it installs without a network.

::

    <output>/wheels/*.whl            this project and what it needs, for one platform and Python
    <output>/requirements.txt        their versions and SHA-256; pip refuses any other file
    <output>/cable-fp32.onnx, .json  the artifact and its spec
    <output>/SHA256SUMS              of every file above
    <output>/install.sh              Linux: makes <output>/venv; with it a Dockerfile
    <output>/install.ps1             Windows: the same

The wheels come from pip's index, in the versions that are installed here where the Python is the
same, so what was tested is what is sent.
"""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from destseg_deploy.errors import ExportError
from destseg_deploy.files import making, refuse_others, scratch, sha256, staging
from destseg_deploy.locks import locked
from destseg_deploy.spec import ModelSpec, name_lost_threshold, spec_path

PROJECT = "destseg-deploy"
SCRIPTS = Path(__file__).with_name("bundle_files")
"""Scripts of a bundle; ``{artifact}`` and ``{python}`` in them are filled in."""

SETUP = "setup.cfg"
HEAD = (SETUP, "pyproject.toml", "README.md", "LICENSE")
"""Files at the top of the sources that a wheel is made of, beside its packages."""

MADE = ("build", "__pycache__")
"""Folders among the sources that builders make."""


@dataclass(frozen=True)
class Platform:
    """A platform that wheels are fetched for.

    Attributes:
        tags: Its wheel tags, the newest first.
        markers: What packages ask about it (PEP 508) to decide what they need.
        scripts: Files of ``bundle_files/`` that install there.
    """

    tags: tuple[str, ...]
    markers: dict[str, str]
    scripts: tuple[str, ...]


PLATFORMS = {
    "linux": Platform(
        (
            *(f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 17)),
            "manylinux2014_x86_64",
        ),
        {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
        ("install.sh", "Dockerfile"),
    ),
    "win_amd64": Platform(
        ("win_amd64",),
        {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
        ("install.ps1",),
    ),
}
"""Name -> platform; all of them are 64-bit x86."""

MACHINES = {"linux": "x86_64", "win_amd64": "AMD64"}


def bundle_artifact(
    artifact: Path,
    output: Path,
    *,
    platform: str = "linux",
    python: str | None = None,
    backend: str = "onnxruntime",
    wheel: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write a folder from which an artifact is installed and run without a network.

    Args:
        artifact: An ``.onnx`` with its spec.
        output: Folder to write; new, empty, or an older bundle.
        platform: One of ``PLATFORMS``.
        python: Version of the Python there, such as ``3.11``; this one's unless given.
        backend: ``onnxruntime`` or ``openvino``; what runs the artifact there.
        wheel: The wheel of this project; made from its sources, where they are here, unless given.
        report: Called with a line for each stage.

    Returns:
        The wheels.

    Raises:
        SpecError: If the artifact's spec is missing or belongs to another file.
        ExportError: If it is no ``.onnx``, or pip finds no wheel of something.
        OutputError: If the folder holds files of others, or cannot be written.
    """
    spec = ModelSpec.read(artifact)
    spec.check_artifact(artifact)
    if spec.kind != "onnx":
        raise ExportError(
            f"{artifact}: {spec.kind}, expected an .onnx. An engine fits one GPU and is built "
            "where it runs; a checkpoint is exported first: destseg-export --checkpoint FILE"
        )
    if platform not in PLATFORMS:
        raise ExportError(f"platform {platform!r}: expected {' or '.join(PLATFORMS)}.")
    version = python or f"{sys.version_info[0]}.{sys.version_info[1]}"
    check_python(version)
    if wheel is not None:
        _check_wheel(wheel)
    with making(output), locked(output / "bundle", output):
        refuse_others([p for p in sorted(output.iterdir()) if p.name[0] != "."], _is_ours)
        with staging(output, durable=False) as staged:
            wheels = staged / "wheels"
            wheels.mkdir()
            name_lost_threshold(spec, output / artifact.name, report)
            report("making the wheel of this project")
            own = _own_wheel(wheels, wheel)
            report(f"fetching wheels for {platform} and Python {version}")
            _fetch(own, backend, wheels, platform, version)
            _write(staged, artifact, platform, version)
            names = [path.name for path in sorted(wheels.iterdir())]
        for old in (output / "wheels").iterdir():
            if old.name not in names:
                old.unlink()
    return [output / "wheels" / name for name in names]


def _is_ours(path: Path) -> bool:
    """Tell whether a file is of an earlier bundle: its table of hashes is beside it."""
    sums = path.with_name("SHA256SUMS")
    return sums.is_file() and "  requirements.txt" in sums.read_text("utf-8", "replace")


def check_python(version: str) -> None:
    """Refuse what is no version of Python as wheels name it.

    Raises:
        ExportError: With the text.
    """
    if not re.fullmatch("3[.](0|[1-9][0-9]?)", version):
        raise ExportError(f"{version!r}: expected 3.N, such as 3.11.")


def _check_wheel(path: Path) -> None:
    """Refuse what is no wheel of this project."""
    if not path.is_file() or path.suffix != ".whl":
        raise ExportError(f"--wheel {path}: no such wheel. Expected destseg_deploy-*.whl.")
    try:
        name, reason = parse_wheel_filename(path.name)[0], ""
        _needs(path)
    except (ValueError, OSError, zipfile.BadZipFile, StopIteration) as error:
        name, reason = None, f" ({error})" if str(error) else " (it has no METADATA)"
    if name != PROJECT:
        raise ExportError(
            f"--wheel {path}: no wheel of this project{reason}. Expected destseg_deploy-*.whl."
        )


def _own_wheel(folder: Path, given: Path | None) -> Path:
    """Return the wheel of this project in a folder: the given one, or one made from the sources."""
    if given is not None:
        return Path(shutil.copy(given, folder))
    installed = distribution(PROJECT)
    source = _source_of(installed)
    if source is None:
        raise ExportError(
            f"{PROJECT} {installed.version} was installed without its sources, so its wheel cannot "
            "be made here. Pass the wheel that it was installed from: --wheel FILE"
        )
    # A copy: builders write into the sources, and take modules from what an earlier build left.
    with scratch() as place:
        _copy_sources(source, place)
        _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(place))
    return next(iter(folder.glob("destseg_deploy-*.whl")))


def _source_of(installed: Distribution) -> Path | None:
    """Return the folder that a package was installed from; None where it is not here."""
    text = installed.read_text("direct_url.json")
    url = urlsplit(json.loads(text).get("url", "") if text else "")
    folder = Path(url2pathname(url.path))
    return folder if url.scheme == "file" and (folder / SETUP).is_file() else None


def _copy_sources(source: Path, folder: Path) -> None:
    """Copy what a wheel is made of; the folder may hold data, models and environments, too."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(source / SETUP, "utf-8")
    lines = setup["options"]["package_dir"].strip().splitlines()
    packages = [source / line.partition("=")[2].strip() for line in lines]
    files = [source / name for name in HEAD]
    files += [path for package in packages for path in package.rglob("*") if path.is_file()]
    for path in files:
        name = path.relative_to(source)
        if not any(part in MADE or part.startswith(".") for part in name.parts):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)  # without its mode: sources may be read-only


def _fetch(own: Path, backend: str, folder: Path, platform: str, version: str) -> None:
    """Fetch what the project needs, until nothing that a wheel asks for is missing.

    pip decides by the machine that it runs on whether a package is needed "on Windows only".
    """
    wanted: list[str] = [f"{own}[{backend}]"]
    pins = folder.with_name("constraints.txt")
    pins.write_text("\n".join(_pins(version)) + "\n", "utf-8")
    tags = [word for tag in PLATFORMS[platform].tags for word in ("--platform", tag)]
    for _ in range(10):
        _pip(
            "download", "--quiet", "--dest", str(folder), "--only-binary=:all:",
            "--implementation", "cp", "--python-version", version, *tags,
            "--constraint", str(pins), *wanted,
        )  # fmt: skip
        wanted = _missing(folder, own, backend, platform, version)
        if not wanted:
            pins.unlink()
            return
    raise ExportError(f"wheels for {platform}: {', '.join(wanted)} are still missing.")


def _pins(version: str) -> list[str]:
    """Return the installed versions, where the target's Python is this one."""
    if version != f"{sys.version_info[0]}.{sys.version_info[1]}":
        return []
    found: dict[str, str] = {
        canonicalize_name(one.name): one.version.split("+")[0] for one in distributions()
    }
    if "opencv-python" in found:  # the same library, with windows
        found.setdefault("opencv-python-headless", found["opencv-python"])
    return [f"{name}=={number}" for name, number in sorted(found.items()) if name != PROJECT]


def _missing(folder: Path, own: Path, backend: str, platform: str, version: str) -> list[str]:
    """Return the requirements of the wheels in a folder that no wheel there meets."""
    markers = {
        **PLATFORMS[platform].markers,
        "platform_machine": MACHINES[platform],
        "python_version": version,
        "python_full_version": f"{version}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    wheels = sorted(folder.glob("*.whl"))
    there = {parse_wheel_filename(path.name)[0] for path in wheels}
    lacking: dict[str, None] = {}
    for path in wheels:
        extra = backend if path.name == own.name else ""
        for need in map(Requirement, _needs(path)):
            marker = need.marker
            wanted = marker is None or marker.evaluate({**markers, "extra": extra})
            if wanted and canonicalize_name(need.name) not in there:
                need.marker = None
                lacking[str(need)] = None
    return list(lacking)


def _needs(wheel: Path) -> list[str]:
    """Return the requirements that a wheel's metadata states."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        name = next(n for n in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        head = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    return [str(value) for value in head.get_all("Requires-Dist", [])]


def _write(folder: Path, artifact: Path, platform: str, version: str) -> None:
    """Write all but the wheels."""
    for path in (artifact, spec_path(artifact)):
        shutil.copyfile(path, folder / path.name)
    wheels = sorted((folder / "wheels").iterdir())
    lines = [_requirement(path) for path in wheels]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8", newline="\n")
    for name in PLATFORMS[platform].scripts:
        text = (SCRIPTS / name).read_text("utf-8")
        made = text.replace("{artifact}", artifact.name).replace("{python}", version)
        (folder / name).write_text(made, "utf-8", newline="\n")
        (folder / name).chmod(0o755 if name.endswith(".sh") else 0o644)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sums = (f"{sha256(path)}  {path.relative_to(folder).as_posix()}" for path in files)
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n", "utf-8", newline="\n")


def _requirement(wheel: Path) -> str:
    name, version, *_ = parse_wheel_filename(wheel.name)
    return f"{name}=={version} --hash=sha256:{sha256(wheel)}"


def _pip(*arguments: str) -> None:
    """Run pip; raise ExportError with its last lines where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ExportError(f"pip {arguments[0]} failed: {_last(done.stderr.splitlines())}")


def _last(lines: Sequence[str] | Iterable[str]) -> str:
    given = [line.strip() for line in lines if line.strip()]
    # What a builder said last is the cause, and stands above this line of pip's.
    ends = [i for i, line in enumerate(given) if line == "[end of output]"]
    said = given[ends[0] - 1 : ends[0]] if ends else []
    # Behind "ERROR: Exception:" comes a traceback, which tells the cause in its last line.
    said += [line for line in given[:-1] if line.startswith("ERROR") or "No module" in line]
    said += given[-1:]
    return " ".join(said)[-600:] or "it said nothing"
