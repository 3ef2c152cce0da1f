"""Where an engine is built and for which GPUs: the builder, and the GPU of this machine.

TensorRT builds on the GPU that will run the engine, and for no other. TensorRT-RTX builds ahead of
time, with or without a GPU, for the compute capabilities it knows: those of workstations, no Hopper
and no other GPU of a data centre. The library is asked what it knows; its version says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from destseg_deploy.errors import BackendError, DestsegError, ExportError
from destseg_deploy.runtime.cuda.device import open_device
from destseg_deploy.runtime.cuda.protocols import Gpu
from destseg_deploy.runtime.trt.library import MODULES, library_version, load_library
from destseg_deploy.runtime.trt.record import TITLES

AUTO = "auto"
AHEAD = "tensorrt-rtx"
"""The builder that needs no GPU."""


class NoGpuError(BackendError):
    """There is no GPU to build for, and no target was named."""


@dataclass(frozen=True)
class Site:
    """A builder, and what it builds for.

    Attributes:
        builder: ``tensorrt`` or ``tensorrt-rtx``.
        library: Its module.
        targets: Compute capabilities that the engine is for, such as ``sm_86``.
        device: The GPU of this machine, open; None without one.
    """

    builder: str
    library: ModuleType
    targets: tuple[str, ...]
    device: Gpu | None

    @property
    def version(self) -> str:
        """Version of the builder."""
        return library_version(self.library)

    @property
    def title(self) -> str:
        """The builder and its version in words."""
        return f"{TITLES[self.builder]} {self.version}"

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that the engine is tuned on; None for one built ahead of time."""
        return None if self.builder == AHEAD or self.device is None else self.device.name

    @property
    def runs_here(self) -> bool:
        """Whether this machine can run the engine."""
        return self.device is not None and self.device.sm in self.targets


def read_targets(texts: Sequence[str]) -> tuple[str, ...]:
    """Read compute capabilities as people write them: ``sm86``, ``sm_86``, ``86`` or ``8.6``.

    Returns:
        As ``sm_86``, in order and each once.

    Raises:
        ExportError: If one is written in another way.
    """
    numbers = set()
    for text in texts:
        found = re.fullmatch(r"(?:sm_?)?(\d{2,3})|(\d{1,2})\.(\d)", text.strip().lower(), re.ASCII)
        if not found:
            raise ExportError(
                f"target {text!r}: expected a compute capability such as sm86 or 8.6."
            )
        numbers.add(int(found[1] or found[2] + found[3]))
    return tuple(f"sm_{number}" for number in sorted(numbers))


def known_targets(library: ModuleType) -> tuple[str, ...]:
    """Return the targets that a library can build for ahead of time; TensorRT has none."""
    names = getattr(library, "ComputeCapability", None)
    members = names.__members__ if names is not None else ()
    return read_targets([name for name in members if re.fullmatch(r"SM\d+", name)])


@contextmanager
def open_site(
    builder: str = AUTO, targets: Sequence[str] = (), *, device: str = "cuda"
) -> Iterator[Site]:
    """Find a builder for some targets, or for the GPU of this machine, and open that GPU.

    Args:
        builder: One of ``MODULES``, or ``auto``: TensorRT-RTX where targets are named, else
            TensorRT where it is usable, else TensorRT-RTX.
        targets: What to build for, as ``read_targets`` takes it; the GPU at hand unless given.
        device: That GPU, ``cuda`` or ``cuda:<index>``.

    Yields:
        The site; its device is closed afterwards.

    Raises:
        NoGpuError: If there is no GPU and no target is named.
        BackendError: If no builder is there; the message says what was missing.
        ExportError: If the builder cannot build for a target.
    """
    wanted = read_targets(targets)
    gpu, missing = _find_gpu(device)
    try:
        yield _choose(builder, wanted, gpu, missing)
    finally:
        if gpu is not None:
            gpu.close()


def _find_gpu(device: str) -> tuple[Gpu | None, str]:
    """Open a GPU; where there is none return the reason."""
    try:
        return open_device(device), ""
    except BackendError as error:
        return None, str(error)


def _choose(builder: str, targets: tuple[str, ...], gpu: Gpu | None, missing: str) -> Site:
    if builder == AUTO and targets:
        builder = AHEAD
    if gpu is None and not targets:
        try:
            # Without a builder a GPU would not help either, so that is what to install first.
            load_library(AHEAD if builder == AUTO else builder)
        except BackendError as error:
            raise NoGpuError(str(error)) from error
        raise NoGpuError(
            f"no GPU to build for ({missing.rstrip('.')}). Build on the machine that will run the "
            "engine, or ahead of time for the GPUs of such machines: --target sm86,sm89"
        )
    if builder != AUTO:
        return _site(builder, targets, gpu)
    reasons = []
    for name in MODULES:
        try:
            return _site(name, targets, gpu)
        except DestsegError as error:
            reasons.append(str(error))
    raise BackendError(" ".join(reasons))


def _site(builder: str, targets: tuple[str, ...], gpu: Gpu | None) -> Site:
    library = load_library(builder)
    if builder == AHEAD:
        wanted = targets or ((gpu.sm,) if gpu is not None else ())
        site = Site(builder, library, wanted, gpu)
        _check_known(site)
        return site
    if targets or gpu is None:
        raise ExportError(
            f"target {', '.join(targets)}: {TITLES[builder]} builds for the GPU it runs on only. "
            f"Leave the target out, or build ahead of time with --builder {AHEAD}."
        )
    return Site(builder, library, (gpu.sm,), gpu)


def _check_known(site: Site) -> None:
    known = known_targets(site.library)
    for target in site.targets:
        if target not in known:
            raise ExportError(
                f"target {target}: {site.title} builds for {', '.join(known)} only. GPUs of data "
                "centres, such as Hopper (sm_90), need TensorRT, on that very GPU: --builder "
                "tensorrt"
            )
