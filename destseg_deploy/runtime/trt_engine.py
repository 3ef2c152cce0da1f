"""A TensorRT engine, opened only when it fits the machine, and held against its spec."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from destseg_deploy.errors import BackendError, SpecError
from destseg_deploy.runtime.device import Buffer, Device, Stream
from destseg_deploy.runtime.engine_record import (
    EngineRecord,
    Machine,
    check_engine,
    rebuild_command,
)
from destseg_deploy.runtime.trt_library import library_version
from destseg_deploy.runtime.trt_messages import make_messages
from destseg_deploy.spec import ModelSpec

MINIMUM_SCRATCH = 256
"""Bytes asked for where an engine needs none, so that there is always an address."""


class TrtEngine:
    """One deserialised engine. Contexts made of it must be gone before ``close``."""

    def __init__(
        self, library: ModuleType, content: bytes, spec: ModelSpec, device: Device
    ) -> None:
        """Deserialise an engine that ``read_engine`` found fit.

        Raises:
            BackendError: If TensorRT refuses it.
            SpecError: If its tensors are not what the spec says.
        """
        self._library = library
        self.spec = spec
        self._messages = make_messages(library)
        self._runtime: Any = None
        self._engine: Any = None
        with device.current(), self._explained("deserialize_cuda_engine"):
            try:
                self._runtime = library.Runtime(self._messages)
                self._engine = self._must(self._runtime.deserialize_cuda_engine(content))
                self._check_tensors()
            except BaseException:
                self.close()
                raise

    @property
    def refittable(self) -> bool:
        """Whether its weights can be replaced."""
        return bool(self._engine.refittable)

    @property
    def scratch_size(self) -> int:
        """Bytes of GPU memory that one running context needs for what lies between its layers."""
        return max(int(self._engine.device_memory_size_v2), MINIMUM_SCRATCH)

    @property
    def records_itself(self) -> bool:
        """Whether this TensorRT makes CUDA graphs of its own, as TensorRT-RTX does."""
        return hasattr(self._library, "CudaGraphStrategy")

    def context(
        self, batch: int, stream: Stream, scratch: Buffer, *, own_graphs: bool = False
    ) -> Any:
        """Make an execution context for one batch size; the device must be current.

        Contexts may share scratch memory as long as no two of them run at once.

        Args:
            batch: Images per call.
            stream: Where the switch of the profile is queued; it is done when this returns.
            scratch: At least ``scratch_size`` bytes.
            own_graphs: Let TensorRT make its own CUDA graphs, where it can.

        Raises:
            BackendError: If TensorRT refuses.
        """
        name = self.spec.input.name
        context = None
        with self._explained(f"a context for {batch} images"):
            try:
                context = self._must(self._make_context(own_graphs))
                context.set_device_memory(scratch.pointer, scratch.size)
                profile = self._profile_of(batch)
                self._must(context.set_optimization_profile_async(profile, stream.handle))
                stream.synchronize()
                self._must(context.set_input_shape(name, (batch, *self.spec.size, 3)))
            except BaseException:
                context = None  # or the traceback keeps it until no device is current
                raise
        return context

    def set_addresses(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Tell a context where its tensors lie.

        Raises:
            BackendError: If TensorRT refuses, or needs more than these.
        """
        with self._explained("set_tensor_address"):
            for name, address in addresses.items():
                self._must(context.set_tensor_address(name, address))
            if missing := context.infer_shapes():
                raise BackendError(f"{self._file}: TensorRT asks for more inputs: {missing}.")

    def execute(self, context: Any, stream: Stream) -> None:
        """Queue a context's work; the device must be current.

        Raises:
            BackendError: If TensorRT refuses.
        """
        with self._explained("execute_async_v3"):
            self._must(context.execute_async_v3(stream.handle))

    def refit(self, onnx: bytes) -> None:
        """Replace all weights by those of an ONNX file; the device must be current.

        Raises:
            BackendError: If the engine cannot be refitted, or not with these.
        """
        from destseg_deploy.runtime.refitting import refit_engine

        try:
            with self._explained("refit"):
                refit_engine(self._library, self._engine, onnx, self._messages)
        except BackendError as error:
            traceback.clear_frames(error.__traceback__)  # they keep the engine
            raise BackendError(f"{self._file}: {error}") from error

    def close(self) -> None:
        """Free it: the engine before the runtime that made it."""
        self._engine = None
        self._runtime = None

    @property
    def _file(self) -> str:
        return self.spec.artifact.file

    def _make_context(self, own_graphs: bool) -> Any:
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self._engine, "create_runtime_config"):
            return self._engine.create_execution_context(strategy)
        config = self._must(self._engine.create_runtime_config())
        config.set_execution_context_allocation_strategy(strategy)
        if own_graphs and self.records_itself:
            config.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._engine.create_execution_context(config)

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
        """Hold names, directions, types and sizes against the spec, and the range of batches."""
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

    def _must(self, result: Any) -> Any:
        """Return what a call returned, unless that is None or False, which mean failure."""
        if result is None or result is False:
            raise _RefusedError
        return result

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn a refusal into an error of ours that repeats what TensorRT said."""
        self._messages.take()
        try:
            yield
        except (_RefusedError, RuntimeError, TypeError, ValueError) as error:
            reason = self._messages.take() or str(error) or "no reason given"
            raise BackendError(
                f"{self._file}: TensorRT failed at {what}: {reason[:400]}. If it goes on, rebuild "
                f"the engine: {rebuild_command(self.spec)}"
            ) from error


class _RefusedError(Exception):
    """A call of TensorRT's returned None or False."""


def check_file(path: Path) -> tuple[ModelSpec, EngineRecord]:
    """Read an engine's spec and make sure that the engine is whole; nothing is opened yet.

    Raises:
        SpecError: If the spec is missing, another file's, or not an engine's.
    """
    spec = ModelSpec.read(path)
    record = EngineRecord.of(spec)
    spec.check_artifact(path)
    return spec, record


def check_machine(spec: ModelSpec, library: ModuleType, device: Device) -> None:
    """Make sure that an engine was made for this TensorRT and this GPU.

    Raises:
        SpecError: If it was not.
    """
    record = EngineRecord.of(spec)
    version = library_version(library)
    check_engine(spec, Machine(record.builder, version, device.name, device.sm))


def _describe(tensors: Mapping[str, tuple[str, Any, tuple[int, ...]]]) -> str:
    return ", ".join(
        f"{name} ({mode.lower()} {dtype.name} N{''.join(f'x{n}' for n in shape)})"
        for name, (mode, dtype, shape) in sorted(tensors.items())
    )
