"""ONNX to engine bytes: one strongly typed path for TensorRT 10, 11 and TensorRT-RTX.

Precision lives in the graph; nothing here chooses it. What a library can do is probed by name,
never by version.

``ParsedNetwork`` reads the ONNX file, ``serialize`` builds it. TensorRT's timing cache keeps from
build to build how fast each tactic is on this GPU: with it, a second build of a similar network
takes a fraction of the time and picks the same tactics. Only TensorRT can tell whether a cache is
its own, so it is asked; a cache of another GPU or version is not used and replaced after the build.
TensorRT-RTX times on the machine that runs the engine and keeps none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from destseg_deploy.errors import ExportError
from destseg_deploy.files import replacing
from destseg_deploy.runtime.trt.library import make_messages
from destseg_deploy.runtime.trt.record import TITLES
from destseg_deploy.spec import ModelSpec
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.progress import BuildProgress, ReportShare, make_monitor
from destseg_export.engine.site import AHEAD, Site

LARGEST_TOP_K = 3840
"""TensorRT's limit of TopK."""
WITHOUT_BF16 = ("sm_70", "sm_75")
"""Compute capabilities of Volta and Turing, which TensorRT-RTX refuses late and in other words."""

CAUSES: tuple[tuple[Callable[[str, str], bool], str], ...] = (
    (
        lambda operator, said: operator == "Resize" and "ntialias" in said,
        "An antialiased resize must be two matrix products, which is how destseg-export writes it",
    ),
    (
        lambda operator, said: "UInt8" in said or "UINT8" in said,
        "Pixels must be cast before anything else touches them: Cast to float first",
    ),
    (
        lambda operator, said: "must have same" in said and "type" in said,
        "Networks are strongly typed: cast one input, or convert the fp32 graph with --precision",
    ),
    (
        lambda operator, said: "lugin" in said,
        "This TensorRT has no such operator: compute that part on the host, behind the model",
    ),
    (
        lambda operator, said: not operator,
        "The file is no ONNX model that this TensorRT reads: export it again",
    ),
)
"""Whether an error of an operator has a cause, and what to do about it; the first that fits."""
OTHERWISE = "Export with destseg-export, whose graphs every builder takes, or change this node"

Report = Callable[[str], None]


class ParsedNetwork:
    """A network that TensorRT parsed. The parser owns its weights, so all of it lives together."""

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
            # Strongly typed: TensorRT must keep the types of the graph and may not choose others.
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
            "driver, which this machine lacks. Build it there, or leave --refittable out."
        )
    if options.timing_cache is not None:
        raise ExportError(
            f"timing cache {options.timing_cache}: TensorRT-RTX times on the machine that runs the "
            "engine and keeps no cache at a build. Leave --timing-cache out."
        )


def serialize(
    graph: ParsedNetwork,
    spec: ModelSpec,
    options: BuildOptions,
    *,
    report: Report = lambda line: None,
    progress: ReportShare = lambda stage, share: None,
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
            # Raised inside of a callback of TensorRT, where no Python exception may pass.
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
    """Make the site's GPU the current one for a block; nothing where the site has none."""
    return nullcontext() if site.device is None else site.device.current()


def _configure(
    graph: ParsedNetwork, spec: ModelSpec, options: BuildOptions, told: BuildProgress
) -> Any:
    library, config = graph.site.library, graph.builder.create_builder_config()
    config.progress_monitor = make_monitor(library, told)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # the inspector needs it
    if not options.tf32:
        # TensorRT sets it by itself, and would round the inputs of fp32 operators to 10 bits.
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


def _add_profile(graph: ParsedNetwork, config: Any, spec: ModelSpec) -> None:
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


def load_timing_cache(config: Any, path: Path, report: Callable[[str], None]) -> None:
    """Give a builder's config the timings in a file, or an empty cache where it cannot use them.

    Args:
        config: An ``IBuilderConfig``.
        path: The cache file.
        report: Called with a line that says what was done.

    Raises:
        OSError: If the file is there and cannot be read.
    """
    content = path.read_bytes() if path.is_file() else b""
    if content and _take(config, content):
        report(f"timing cache {path}: {len(content)} bytes reused")
        return
    if content:
        report(f"timing cache {path}: another GPU's or TensorRT's, written anew")
    # TensorRT keeps no timings without a cache, so an empty one starts it.
    _take(config, b"")


def save_timing_cache(config: Any, path: Path) -> None:
    """Keep a config's timings after a build; the file is whole or as it was.

    Raises:
        OSError: If it cannot be written.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(cache.serialize()))


def _take(config: Any, content: bytes) -> bool:
    cache = config.create_timing_cache(content)
    # False: a cache of another GPU or version must be refused, since its timings would mislead.
    return cache is not None and bool(config.set_timing_cache(cache, False))


def describe_parser_errors(parser: Any) -> str:
    """Say what a parser found wrong first: node, operator, reason and what to change.

    Args:
        parser: An ``OnnxParser`` whose ``num_errors`` is above 0, or which gave no reason.
    """
    if not parser.num_errors:
        return f"TensorRT's parser gave no reason. {OTHERWISE}."
    error = parser.get_error(0)
    said, operator = " ".join(error.desc().split("\n[")[0].split()), error.node_operator()
    where = f"node {error.node_name() or error.node()} ({operator}): " if operator else ""
    advice = next((what for fits, what in CAUSES if fits(operator, said)), OTHERWISE)
    return f"{where}{said[:300].rstrip('.')}. {advice}."
