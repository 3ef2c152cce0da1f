"""A session of ONNX Runtime on a GPU, as the slots of ``runtime.cuda`` run it.

ONNX Runtime takes one stream for all runs, when the session is opened. So each slot keeps its own
stream for copies and resizes. Events make the session's stream wait for the slot's, and the slot's
for the session's; the host waits for neither. ONNX Runtime's own ``io_binding_helper`` for CUDA
does the same: provider option ``user_compute_stream`` (ONNX Runtime 1.18 or newer), run option
``disable_synchronize_execution_providers``, and ``gpu_graph_id`` for each set of addresses.
"""

from __future__ import annotations

import threading
from typing import Any

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda.protocols import Buffer, Gpu, Stream
from destseg_deploy.runtime.cuda.slots import Addresses, follow
from destseg_deploy.runtime.ort.session import bind, one_line
from destseg_deploy.spec import ModelSpec

GRAPH_ID = "gpu_graph_id"
"""Run option that tells CUDA graphs apart; ONNX Runtime keeps 0 for itself, -1 records none."""

UNSYNCHRONIZED = "disable_synchronize_execution_providers"
"""Run option: return when the work is queued, and leave the waiting to the caller."""

NO_GRAPH = -1

MAX_GRAPHS = 64
"""CUDA graphs recorded at most; ONNX Runtime keeps each until the session ends."""


class OrtNetwork:
    """An opened session; see ``Network``."""

    scratch_size = 0
    """ONNX Runtime allocates activations from its own arena."""

    def __init__(
        self, ort: Any, session: Any, spec: ModelSpec, gpu: Gpu, compute: Stream, *, graphs: bool
    ) -> None:
        """Take a session that was opened on a stream.

        Args:
            ort: The module ``onnxruntime``.
            session: An ``InferenceSession`` with ``compute`` as its ``user_compute_stream``.
            spec: Of the artifact.
            gpu: Where it runs.
            compute: The session's stream; closed after this.
            graphs: Whether the session was opened with CUDA graphs.
        """
        self.spec = spec
        self.graphs = graphs
        self._ort = ort
        self._session = session
        self._gpu = gpu
        self._compute = compute
        self._numbers = iter(range(1, MAX_GRAPHS + 1))
        # All runs share one stream, so nothing is gained by queuing two at the same time, and two
        # threads must not record or replay graphs of one session at the same time.
        self._turn = threading.Lock()

    def plan(
        self, batch: int, stream: Stream, scratch: Buffer | None, *, recorded: bool
    ) -> OrtPlan:
        """See ``Network.plan``; beyond ``MAX_GRAPHS``, plans are run without a graph."""
        options = self._ort.RunOptions()
        options.add_run_config_entry(UNSYNCHRONIZED, "1")
        if self.graphs:
            number = next(self._numbers, NO_GRAPH) if recorded else NO_GRAPH
            options.add_run_config_entry(GRAPH_ID, str(number))
        return OrtPlan(self, batch, stream, options)

    def bind(self, batch: int, addresses: Addresses) -> Any:
        """Bind the tensors of a batch to memory on the GPU."""
        return bind(self._session, self.spec, batch, addresses, ("cuda", self._gpu.index))

    def run(self, binding: Any, options: Any, stream: Stream) -> None:
        """Queue a run after what a stream has queued; let that stream wait for it.

        Raises:
            BackendError: If ONNX Runtime fails.
        """
        reason = ""
        with self._turn:
            follow(self._gpu, self._compute, stream)
            try:
                self._session.run_with_iobinding(binding, options)
            except Exception as error:  # its errors share no base class
                reason = one_line(error) or type(error).__name__
            follow(self._gpu, stream, self._compute)
        if reason:
            # Raised outside of the handler: the traceback of ONNX Runtime's error would keep the
            # session alive beyond ``close``.
            raise BackendError(
                f"{self.spec.artifact.file}: ONNX Runtime failed on device "
                f"'cuda:{self._gpu.index}' ({reason}). Load the artifact again; nvidia-smi shows "
                "the GPU's memory and errors."
            )

    def close(self) -> None:
        """Release the session with its graphs and memory."""
        self._session = None


class OrtPlan:
    """See ``Plan``: an IO binding, and run options that name its graph.

    ONNX Runtime records the graph by itself at the first run of a number and replays it from then
    on. Each thread has graphs of its own there.
    """

    def __init__(self, network: OrtNetwork, batch: int, stream: Stream, options: Any) -> None:
        """Bind at the first launch."""
        self._network = network
        self._batch = batch
        self._stream = stream
        self._options = options
        self._addresses: Addresses | None = None
        self._binding: Any = None

    def launch(self, addresses: Addresses) -> None:
        """See ``Plan.launch``."""
        if self._addresses != addresses:
            self._binding = self._network.bind(self._batch, addresses)
            self._addresses = addresses
        self._network.run(self._binding, self._options, self._stream)

    def close(self) -> None:
        """Drop the binding; the graph lives as long as the session."""
        self._binding = None
