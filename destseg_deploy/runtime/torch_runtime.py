"""PyTorch back end: runs a checkpoint as it was trained. The reference for every other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from destseg_deploy.device import CPU, Device
from destseg_deploy.errors import BackendError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.half import half_graph
from destseg_deploy.models.inference import InferenceGraph, StudentTeacherGraph, served_graph
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.options import TorchOptions
from destseg_deploy.runtime.base import Prediction, check_images, check_open, kept_by_children
from destseg_deploy.runtime.parity import check_runtime, parity_frames
from destseg_deploy.spec import ModelSpec

_SWITCH = threading.Lock()
"""PyTorch's switches for TF32 belong to the whole process."""

_RAN_IN: set[int] = set()
"""Processes in which PyTorch has computed: this one, and those that it was forked from."""


class PyTorchRuntime:
    """A checkpoint in eager PyTorch: in float32 as it was trained, or in half precision."""

    def __init__(
        self,
        model: DeSTSeg,
        spec: ModelSpec,
        device: Device = CPU,
        options: TorchOptions | None = None,
        *,
        graph: type[InferenceGraph] = InferenceGraph,
    ) -> None:
        """Take a model in memory; ``open_checkpoint`` takes a file.

        Raises:
            BackendError: If the device is not there, or PyTorch's threads are not (see
                ``_set_threads``).
        """
        if device.kind == "cuda" and not torch.cuda.is_available():
            raise BackendError(
                f"device '{device}': this PyTorch ({torch.__version__}) sees no CUDA GPU. Use "
                "device 'cpu', or install the driver and a CUDA build of torch."
            )
        options = options or TorchOptions()
        _set_threads(options, spec.artifact.file)
        self._process = os.getpid()
        self.spec = replace(spec, precision=options.precision)
        self._tf32 = options.tf32
        self._how = device, options
        self._device = torch.device(str(device))
        self._model: DeSTSeg | None = model
        served = (
            served_graph(model, spec, graph)
            if options.precision == "fp32"
            else half_graph(model, spec, options.precision)
        )
        self._graph: InferenceGraph | None = served.to(self._device)
        self._keep = kept_by_children(self, self._graph)

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._graph, self.spec, self._process)
        _RAN_IN.add(self._process)
        check_images(images, self.spec)
        assert self._graph is not None
        with torch.inference_mode(), switched(self._device, tf32=self._tf32):
            pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
            anomaly_map, score = self._graph(pixels)
        return Prediction(anomaly_map.cpu().numpy(), score.cpu().numpy())

    def student_teacher(self) -> PyTorchRuntime:
        """See ``HasStudentTeacherMap``; in float32, the networks are shared."""
        check_open(self._graph, self.spec, self._process)
        assert self._model is not None
        device, options = self._how
        exact = replace(options, precision="fp32")
        return PyTorchRuntime(self._model, self.spec, device, exact, graph=StudentTeacherGraph)

    def close(self) -> None:
        """Drop the networks."""
        self._graph = self._model = None
        self._keep()


def open_checkpoint(
    path: Path, device: Device = CPU, options: TorchOptions | None = None
) -> PyTorchRuntime:
    """Load a checkpoint; in half precision, compare it with float32 before it is used.

    Raises:
        WeightsError: If the file is damaged or of another model, or half cannot hold it.
        SpecError: If its spec is missing or of another file.
        ParityError: If half's answers are too far from float32's.
        BackendError: If the device is not there.
    """
    options = options or TorchOptions()
    _set_threads(options, path.name)  # loading computes, too
    model, spec = load_checkpoint(path)
    runtime = PyTorchRuntime(model, spec, device, options)
    if options.precision != "fp32":
        frames = parity_frames(spec, options.verify_images)
        check_runtime(PyTorchRuntime(model, spec, device), runtime, frames)
    return runtime


def _set_threads(options: TorchOptions, name: str) -> None:
    """Set the threads; refuse several in a child of a process in which PyTorch has computed.

    OpenMP's threads do not survive a fork, and the child would wait for them for ever.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    if _RAN_IN - {os.getpid()} and torch.get_num_threads() > 1:
        raise BackendError(
            f"{name}: this process was forked from one in which PyTorch has run, "
            "whose threads do not survive a fork. Start it with multiprocessing's 'spawn', or use "
            "1 thread."
        )


@contextmanager
def switched(device: torch.device, *, tf32: bool, benchmark: bool | None = None) -> Iterator[None]:
    """Set PyTorch's switches for a GPU, and put them back; products stay in float32.

    Args:
        device: Nothing is switched for another than a GPU.
        tf32: Let convolutions use TF32; PyTorch's default is yes, which changes scores.
        benchmark: Let cuDNN measure its algorithms and keep the fastest; None leaves it as it is.
    """
    if device.type != "cuda":
        yield
        return
    with _SWITCH:
        cudnn = torch.backends.cudnn
        before = cudnn.allow_tf32, cudnn.benchmark
        cudnn.allow_tf32 = tf32
        cudnn.benchmark = cudnn.benchmark if benchmark is None else benchmark
        try:
            with exact_products():
                yield
        finally:
            cudnn.allow_tf32, cudnn.benchmark = before


@contextmanager
def exact_products() -> Iterator[None]:
    """Keep TF32 out of matrix products, which PyTorch allows only where the program asked for it.

    A resize by matrix products needs all bits of float32. ``allow_tf32`` is not used: it sets a
    part of what ``set_float32_matmul_precision`` sets, and PyTorch refuses to read what differs.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the program set PyTorch's newer switch, beside which this one refuses
        with _precision_of(torch.backends.cuda.matmul, "ieee"):
            yield
        return
    if before == "highest":
        yield
        return
    with _precision_of(getattr(torch.backends.mkldnn, "matmul", None)):  # set along with a GPU's
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextmanager
def _precision_of(products: Any, wanted: str | None = None) -> Iterator[None]:
    """Set a newer switch of products unless None is wanted, and put it back in any case.

    Args:
        products: A back end's; None where PyTorch is older than 2.9 and has no such switch.
        wanted: ``ieee`` is float32.
    """
    if products is None:
        yield
        return
    before = products.fp32_precision
    products.fp32_precision = wanted or before
    try:
        yield
    finally:
        products.fp32_precision = before
