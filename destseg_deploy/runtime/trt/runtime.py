"""TensorRT back end: runs ``.engine`` on the GPU it was built for, with TensorRT 10, 11 or RTX."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from destseg_deploy.device import CUDA, Device
from destseg_deploy.options import TensorRtOptions
from destseg_deploy.runtime.cuda.device import open_device
from destseg_deploy.runtime.cuda.runtime import GpuRuntime
from destseg_deploy.runtime.cuda.slots import GraphPolicy
from destseg_deploy.runtime.trt.engine import TrtEngine, check_file, check_machine
from destseg_deploy.runtime.trt.library import load_library


class TrtRuntime(GpuRuntime):
    """An engine in several slots, each with contexts and CUDA graphs of its own.

    To serve another category with the same engine, write a second engine file with
    ``destseg-export refit`` and open it beside this one.
    """

    def __init__(
        self, path: Path, device: Device = CUDA, options: TensorRtOptions | None = None
    ) -> None:
        """Open an engine after checking that it is whole and was made for this machine.

        Args:
            path: The ``.engine`` file; its spec lies beside it.
            device: A CUDA GPU.
            options: See ``TensorRtOptions``; defaults unless given. Where CUDA graphs cannot be
                recorded, a warning says why and the engine runs without.

        Raises:
            SpecError: If the spec is missing or another file's, or the engine was made for another
                GPU or TensorRT.
            BackendError: If TensorRT, the GPU or its memory is not there.
        """
        options = options or TensorRtOptions()
        spec, record = check_file(path)
        library = load_library(record.builder)
        policy = GraphPolicy(wanted=options.cuda_graph)
        with ExitStack() as owned:
            gpu = open_device(device, binding=options.binding)
            owned.callback(gpu.close)
            check_machine(spec, library, gpu)
            engine = TrtEngine(library, path.read_bytes(), spec, gpu, policy)
            super().__init__(engine, gpu, options.contexts, owned.pop_all())
