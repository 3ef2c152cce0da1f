"""ONNX to engine bytes: one strongly typed path for TensorRT 10, 11 and TensorRT-RTX.

Precision lives in the graph; nothing here chooses it. What a library can do is probed by name,
never by version.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from destseg_deploy.errors import ExportError
from destseg_deploy.runtime.engine_record import TITLES
from destseg_deploy.runtime.trt_messages import make_messages
from destseg_deploy.spec import ModelSpec
from destseg_export.build_progress import BuildProgress, Progress, make_monitor
from destseg_export.engine_site import AHEAD, Site
from destseg_export.parser_errors import describe_parser_errors
from destseg_export.timing_cache import load_timing_cache, save_timing_cache

LARGEST_TOP_K = 3840
"""TensorRT's limit of TopK."""
WITHOUT_BF16 = ("sm_70", "sm_75")
"""Compute capabilities of Volta and Turing, which TensorRT-RTX refuses late and in other words."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """What can be asked of a builder.

    Attributes:
        workspace_mib: GPU memory that tactics may use, in MiB; all there is unless given.
        refit: Make an engine whose weights can be replaced; it is a little slower.
        tf32: Let fp32 convolutions and the resize round their inputs to 10 bits, for speed.
        timing_cache: File that keeps tactics' timings, for TensorRT only.
    """

    workspace_mib: int | None = None
    refit: bool = False
    tf32: bool = False
    timing_cache: Path | None = None

    def flags(self) -> tuple[str, ...]:
        """Return what changes the engine, sorted, for its record."""
        chosen = {
            "refit": self.refit,
            "tf32": self.tf32,
            f"workspace={self.workspace_mib}MiB": self.workspace_mib is not None,
        }
        return tuple(sorted(name for name, on in chosen.items() if on))


class Graph:
    """A parsed network. The parser owns its weights, so all of it lives as long as this."""

    def __init__(self, site: Site, onnx: Path) -> None:
        """Parse an ONNX file.

        Raises:
            ExportError: If TensorRT refuses it; with the node and what to change.
        """
        library = site.library
        self.site = site
        self.messages = make_messages(library)
        self.name = onnx.name
        started = time.perf_counter()
        with current(site):
            self.builder = self._made(library.Builder, self.messages)
            typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            self.network = self.builder.create_network(typed)
            self._parser = library.OnnxParser(self.network, self.messages)
            if not self._parser.parse_from_file(str(onnx)):
                raise ExportError(
                    f"{onnx.name}: {TITLES[site.builder]} cannot read it: "
                    f"{describe_parser_errors(self._parser)}"
                )
        self.parse_seconds = time.perf_counter() - started
        self.messages.take()

    def _made(self, kind: Any, messages: Any) -> Any:
        """Make an object of TensorRT's, which raises a TypeError about C++ where it cannot."""
        try:
            return kind(messages)
        except (TypeError, RuntimeError) as error:
            reason = messages.take() or " ".join(str(error).split())
            raise ExportError(f"{self.site.title} does not start: {reason[:300]}") from error


def check_options(spec: ModelSpec, site: Site, options: BuildOptions) -> None:
    """Refuse what a builder cannot do, before it says so in its own words.

    Raises:
        ExportError: With what to change.
    """
    if spec.output.top_k > LARGEST_TOP_K:
        raise ExportError(
            f"{spec.artifact.file}: the score is the mean of the {spec.output.top_k} largest "
            f"pixels, TensorRT takes {LARGEST_TOP_K} at most. Train with a smaller T or a smaller "
            "network size, or use ONNX Runtime."
        )
    if spec.precision == "bf16" and (turing := sorted(set(site.targets) & set(WITHOUT_BF16))):
        raise ExportError(
            f"{spec.artifact.file}: bf16, and GPUs of {', '.join(turing)} have none. Use "
            "--precision fp16, or leave that target out."
        )
    if site.builder != AHEAD:
        return
    if options.refit and site.device is None:
        raise ExportError(
            "a refittable engine: TensorRT-RTX builds one only on a machine with an NVIDIA GPU and "
            "driver, and there is none here. Build it there, or leave --refittable out."
        )
    if options.timing_cache is not None:
        raise ExportError(
            f"timing cache {options.timing_cache}: TensorRT-RTX times on the machine that runs the "
            "engine and keeps no cache at a build. Leave --timing-cache out."
        )


def serialize(
    graph: Graph,
    spec: ModelSpec,
    options: BuildOptions,
    *,
    report: Report = lambda line: None,
    progress: Progress = lambda stage, share: None,
) -> bytes:
    """Build a parsed network.

    Args:
        graph: Of the ONNX file.
        spec: Its contract: the batch range becomes the optimization profile.
        options: What is asked of the builder.
        report: Called with a line that says what became of the timing cache.
        progress: Called with stage and share done.

    Returns:
        The raw engine.

    Raises:
        ExportError: If TensorRT cannot build it.
    """
    told = BuildProgress(progress)
    with current(graph.site):
        config = _configure(graph, spec, options, told)
        if options.timing_cache is not None:
            load_timing_cache(config, options.timing_cache, report)
        built = graph.builder.build_serialized_network(graph.network, config)
        if told.failure is not None:
            raise told.failure
        if built is None:
            reason = graph.messages.take() or "no reason given"
            raise ExportError(
                f"{graph.name}: {graph.site.title} cannot build it for "
                f"{', '.join(graph.site.targets)}: {reason[:400]}"
            )
        if options.timing_cache is not None:
            save_timing_cache(config, options.timing_cache)
        progress("built", 1.0)
        return bytes(built)


def current(site: Site) -> AbstractContextManager[None]:
    """Make the site's GPU the current one for a block, where there is one."""
    return nullcontext() if site.device is None else site.device.current()


def _configure(graph: Graph, spec: ModelSpec, options: BuildOptions, told: BuildProgress) -> Any:
    library, config = graph.site.library, graph.builder.create_builder_config()
    config.progress_monitor = make_monitor(library, told)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # the inspector needs it
    if not options.tf32:
        config.clear_flag(library.BuilderFlag.TF32)
    if options.refit:
        config.set_flag(library.BuilderFlag.REFIT)
    if options.workspace_mib is not None:
        pool = library.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace_mib << 20)
    if graph.site.builder == AHEAD:
        _aim(config, graph.site)
    _add_profile(graph, config, spec)
    return config


def _aim(config: Any, site: Site) -> None:
    """Name the compute capabilities to build for."""
    kinds = site.library.ComputeCapability
    config.num_compute_capabilities = len(site.targets)
    for index, target in enumerate(site.targets):
        if not config.set_compute_capability(getattr(kinds, _member(target)), index):
            raise ExportError(f"target {target}: {site.title} refuses it.")


def _member(target: str) -> str:
    return target.replace("_", "").upper()


def _add_profile(graph: Graph, config: Any, spec: ModelSpec) -> None:
    """Add one optimization profile: the spec's batches at its fixed size."""
    batch, pixels = spec.input.batch, (*spec.size, 3)
    profile = graph.builder.create_optimization_profile()
    shapes = [(count, *pixels) for count in (batch.min, batch.opt, batch.max)]
    profile.set_shape(spec.input.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(
            f"{graph.name}: its input {spec.input.name} does not take batches of {batch} at "
            f"{spec.size[1]}x{spec.size[0]} pixels ({graph.messages.take()[:300]}). The spec is "
            "another file's; export the graph again."
        )
