"""A TensorRT engine, opened only when it fits the machine and checked against its spec; its plans.

A plan is one batch size: an execution context and, once warm, its CUDA graph. Both belong together.
A graph replays what its context did, and a change of that context, be it a shape or an address,
makes the replay undefined. So NVIDIA advises one context for each captured graph; all of a slot
share their scratch memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from destseg_deploy.errors import BackendError, SpecError
from destseg_deploy.runtime.cuda.protocols import Buffer, Gpu, Graph, Stream
from destseg_deploy.runtime.cuda.slots import Addresses, GraphPolicy
from destseg_deploy.runtime.trt.library import library_version, make_messages
from destseg_deploy.runtime.trt.record import (
    Machine,
    check_engine,
    engine_record,
    rebuild_command,
)
from destseg_deploy.spec import EngineRecord, ModelSpec

MINIMUM_SCRATCH = 256
"""Bytes asked for where an engine needs none, so that there is always an address."""


class TrtEngine:
    """One deserialised engine; see ``Network``. Plans made of it must be closed before it."""

    def __init__(
        self,
        library: ModuleType,
        content: bytes,
        spec: ModelSpec,
        gpu: Gpu,
        policy: GraphPolicy,
    ) -> None:
        """Deserialise an engine that ``check_file`` and ``check_machine`` found fit.

        Args:
            library: The TensorRT that it was built with.
            content: The engine's file.
            spec: Its spec.
            gpu: The GPU it was built for.
            policy: Whether CUDA graphs are recorded.

        Raises:
            BackendError: If TensorRT refuses it.
            SpecError: If its tensors are not what the spec says.
        """
        self._library = library
        self.spec = spec
        self.policy = policy
        self._messages = make_messages(library)
        self._runtime: Any = None
        self._engine: Any = None
        with gpu.current():
            try:
                what = "deserialize_cuda_engine"
                self._runtime = self.call(what, library.Runtime, self._messages)
                self._engine = self.call(what, self._runtime.deserialize_cuda_engine, content)
                self._check_tensors()
            except BaseException:
                self.close()
                raise

    @property
    def graphs(self) -> bool:
        """See ``Network.graphs``."""
        return self.policy.wanted

    @property
    def scratch_size(self) -> int:
        """See ``Network.scratch_size``: what one running context needs."""
        return max(int(self._engine.device_memory_size_v2), MINIMUM_SCRATCH)

    @property
    def records_itself(self) -> bool:
        """Whether this TensorRT makes CUDA graphs of its own, as TensorRT-RTX does."""
        return hasattr(self._library, "CudaGraphStrategy")

    def plan(
        self, batch: int, stream: Stream, scratch: Buffer | None, *, recorded: bool
    ) -> TrtPlan:
        """See ``Network.plan``."""
        assert scratch is not None
        return TrtPlan(self, batch, stream, scratch, recorded=recorded)

    def context(self, batch: int, stream: Stream, scratch: Buffer, *, own_graphs: bool) -> Any:
        """Make an execution context for one batch size; the GPU must be current.

        Args:
            batch: Images per call.
            stream: Where the switch of the profile is queued; it is done when this returns.
            scratch: At least ``scratch_size`` bytes. Contexts may share it as long as no two of
                them run at the same time.
            own_graphs: Let TensorRT make its own CUDA graphs, where it can.

        Raises:
            BackendError: If TensorRT refuses.
        """
        what = f"a context for {batch} images"
        shape = (batch, *self.spec.size, 3)
        profile = self._profile_of(batch)
        context = self.call(what, self._engine.create_execution_context, self._config(own_graphs))
        context.set_device_memory(scratch.pointer, scratch.size)
        self.call(what, context.set_optimization_profile_async, profile, stream.handle)
        stream.synchronize()
        self.call(what, context.set_input_shape, self.spec.input.name, shape)
        return context

    def set_addresses(self, context: Any, addresses: Addresses) -> None:
        """Tell a context where its tensors lie.

        Raises:
            BackendError: If TensorRT refuses, or needs more than these.
        """
        spec = self.spec
        names = spec.input.name, spec.output.map_name, spec.output.score_name
        for name, address in zip(names, addresses, strict=True):
            self.call("set_tensor_address", context.set_tensor_address, name, address)
        if missing := context.infer_shapes():
            raise BackendError(f"{self._file}: TensorRT asks for more inputs: {missing}.")

    def execute(self, context: Any, stream: Stream) -> None:
        """Queue a context's work; the GPU must be current.

        Raises:
            BackendError: If TensorRT refuses.
        """
        self.call("execute_async_v3", context.execute_async_v3, stream.handle)

    def close(self) -> None:
        """Free it: the engine before the runtime that made it."""
        self._engine = None
        self._runtime = None

    def call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call TensorRT and return the result, unless that is None or False, which mean failure.

        Args:
            what: What an error says has failed.
            function: A method of TensorRT's.
            arguments: Passed on.

        Raises:
            BackendError: If the call fails; with the words that TensorRT said to its logger.
        """
        self._messages.take()  # what was said earlier explains nothing here
        reason = ""
        result = None
        try:
            result = function(*arguments)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error)
        if result is None or result is False:
            # A traceback keeps its frames and what they name. So this is raised outside of the
            # handler, on no other exception, and from a frame that names nothing of TensorRT's:
            # contexts and engines would outlive ``close`` and be freed in no CUDA context.
            del function, arguments
            self._refuse(what, reason)
        return result

    def _refuse(self, what: str, reason: str) -> NoReturn:
        said = self._messages.take() or reason or "no reason given"
        raise BackendError(
            f"{self._file}: TensorRT failed at {what}: {said[:400]}. If it goes on, rebuild the "
            f"engine: {rebuild_command(self.spec)}"
        )

    @property
    def _file(self) -> str:
        return self.spec.artifact.file

    def _config(self, own_graphs: bool) -> Any:
        """Return how a context is made: with memory of ours, and RTX's graphs if wanted."""
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self._engine, "create_runtime_config"):
            return strategy  # an older TensorRT takes the strategy itself
        config = self.call("create_runtime_config", self._engine.create_runtime_config)
        config.set_execution_context_allocation_strategy(strategy)
        if own_graphs and self.records_itself:
            config.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return config

    def _profile_of(self, batch: int) -> int:
        name = self.spec.input.name
        if self._engine.get_tensor_shape(name)[0] == batch:
            return 0  # built for one batch size only
        for index in range(self._engine.num_optimization_profiles):
            low, _, high = self._engine.get_tensor_profile_shape(name, index)
            if low[0] <= batch <= high[0]:
                return index
        raise SpecError(
            f"{self._file}: no optimization profile holds a batch of {batch}, which its spec "
            f"promises. Rebuild it: {rebuild_command(self.spec)}"
        )

    def _check_tensors(self) -> None:
        """Refuse names, directions, types, sizes or a batch range that are not the spec's."""
        spec, trt = self.spec, self._library
        wanted = {
            spec.input.name: ("INPUT", trt.DataType.UINT8, (*spec.size, 3)),
            spec.output.map_name: ("OUTPUT", trt.DataType.FLOAT, spec.map_size),
            spec.output.score_name: ("OUTPUT", trt.DataType.FLOAT, ()),
        }
        found = self._find_tensors()
        if found != wanted:
            raise SpecError(
                f"{self._file}: the engine has {_describe(found)}, its spec says "
                f"{_describe(wanted)}. The pair was mixed up; rebuild it: {rebuild_command(spec)}"
            )
        for batch in {spec.input.batch.min, spec.input.batch.opt, spec.input.batch.max}:
            self._profile_of(batch)

    def _find_tensors(self) -> dict[str, tuple[str, Any, tuple[int, ...]]]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {
            name: (
                engine.get_tensor_mode(name).name,
                engine.get_tensor_dtype(name),
                tuple(engine.get_tensor_shape(name))[1:],
            )
            for name in names
        }


def check_file(path: Path) -> tuple[ModelSpec, EngineRecord]:
    """Read an engine's spec and make sure that the engine is whole; nothing is opened yet.

    Raises:
        SpecError: If the spec is missing, another file's, or not an engine's.
    """
    spec = ModelSpec.read(path)
    record = engine_record(spec)
    spec.check_artifact(path)
    return spec, record


def check_machine(spec: ModelSpec, library: ModuleType, gpu: Gpu) -> None:
    """Make sure that an engine was made for this TensorRT and this GPU.

    Raises:
        SpecError: If it was not.
    """
    record = engine_record(spec)
    version = library_version(library)
    check_engine(spec, Machine(record.builder, version, gpu.name, gpu.sm))


def _describe(tensors: Mapping[str, tuple[str, Any, tuple[int, ...]]]) -> str:
    return ", ".join(
        f"{name} ({mode.lower()} {dtype.name} N{''.join(f'x{n}' for n in shape)})"
        for name, (mode, dtype, shape) in sorted(tensors.items())
    )


class TrtPlan:
    """See ``Plan``. The GPU must be current, and the stream idle, for every call."""

    def __init__(
        self, opened: TrtEngine, batch: int, stream: Stream, scratch: Buffer, *, recorded: bool
    ) -> None:
        """Make the context; see ``TrtEngine.context``."""
        self._opened = opened
        self._stream = stream
        self._recorded = recorded
        self._context: Any = opened.context(batch, stream, scratch, own_graphs=recorded)
        self._addresses: Addresses | None = None
        self._graph: Graph | None = None
        self._warm = False

    def launch(self, addresses: Addresses) -> None:
        """Queue the network: plainly at first, from the second time on as a graph.

        The first run lets TensorRT finish what it postpones, which must not be recorded.
        """
        if self._addresses != addresses:
            assert self._graph is None, "the addresses of a recorded plan are fixed"
            self._opened.set_addresses(self._context, addresses)
            self._addresses = addresses
        if self._warm and self._graph is None and self._records():
            self._record()
        if self._graph is not None:
            self._stream.launch_graph(self._graph)
            return
        self._execute()
        self._warm = True

    def close(self) -> None:
        """Free the graph, then the context that it replays."""
        graph, self._graph = self._graph, None
        self._context = None
        if graph is not None:
            graph.close()

    def _execute(self) -> None:
        self._opened.execute(self._context, self._stream)

    def _records(self) -> bool:
        policy = self._opened.policy
        return self._recorded and policy.refusal is None and not self._opened.records_itself

    def _record(self) -> None:
        """Try to record; after a refusal, the context is run plainly from now on."""
        try:
            self._graph = record(self._stream, self._execute)
        except BackendError as error:
            self._opened.policy.refuse(str(error))


def record(stream: Stream, work: Callable[[], None]) -> Graph:
    """Record what some work queues on a stream, instead of running it.

    Raises:
        BackendError: If it cannot be recorded; the stream then takes plain work again.
    """
    stream.begin_capture()
    try:
        work()
    except BaseException:
        with suppress(BackendError):
            stream.end_capture().close()  # else the stream goes on recording
        raise
    return stream.end_capture()
