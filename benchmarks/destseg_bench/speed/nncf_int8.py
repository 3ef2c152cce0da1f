"""The layers that an INT8 artifact holds in INT8, quantised by NNCF: a rival for the CPU study.

NNCF is OpenVINO's own quantiser and knows which operators OpenVINO joins into one integer operator.
It is given the graph and the convolutions that ``destseg-export quantize`` kept in INT8. It places
its own quantisers around them, also at sums, poolings and concatenations, and corrects biases,
which ours does not. The model that it writes runs on OpenVINO alone.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError, DataError
from destseg_deploy.runtime.offline import import_nncf, import_openvino, openvino_core
from destseg_deploy.spec import FileRecord, ModelSpec, QuantizationRecord, writing

SUFFIX = ".xml"
"""Of a model in OpenVINO's format; its weights are in a ``.bin`` beside it."""

BIAS = "/WithoutBiases"
"""What OpenVINO appends to the name of a convolution when it splits off the bias."""

UNTOUCHED = (
    "MatMul",
    "Multiply",
    "Divide",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "Sigmoid",
    "TopK",
)
"""Operators between and behind the networks, which our scheme keeps in float32, too."""


def quantize_with_nncf(
    fused: Path, int8: Path, frames: NDArray[np.uint8], output: Path
) -> ModelSpec:
    """Quantise with NNCF the layers that an INT8 artifact holds in INT8.

    Args:
        fused: The fp32 ``.onnx`` of which the artifact was made, with the fusions that ``quantize``
            applies: ``destseg-export fuse PLAIN --for-int8``.
        int8: The artifact of ``destseg-export quantize``.
        frames: uint8 (N, H, W, 3) at the graph's input size, to calibrate on.
        output: The ``.xml`` to write; ``.bin`` and the spec are written beside it.

    Returns:
        The spec as written.

    Raises:
        SpecError: If a spec is missing or belongs to another file.
        DataError: If the files do not belong together, or ``output`` does not end in ``.xml``.
        BackendError: If NNCF is not installed.
    """
    spec, layers = _check_pair(fused, int8)
    if output.suffix != SUFFIX:
        raise DataError(f"{output}: expected a name that ends in {SUFFIX}, OpenVINO's format.")
    nncf, openvino = _import()
    model = openvino_core().read_model(str(fused))
    kept_out = _float_operators(model, layers)
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # NNCF prints its progress on stdout
        quantised = nncf.quantize(
            model,
            nncf.Dataset([frame[None] for frame in frames]),
            subset_size=len(frames),
            ignored_scope=nncf.IgnoredScope(names=kept_out),
        )
    made = QuantizationRecord(f"NNCF {nncf.__version__}", "u8", tuple(sorted(layers)))
    with writing(output, SUFFIX) as staged:
        openvino.save_model(quantised, str(staged), compress_to_fp16=False)
        record = FileRecord(output.name, FileRecord.of(staged).sha256)
        written = replace(spec, precision="int8", quantization=made, parity=None, artifact=record)
        written.write(staged)
    return written


def _check_pair(fused: Path, int8: Path) -> tuple[ModelSpec, set[str]]:
    """Return the fp32 spec and the layers in INT8, if the two files belong together."""
    spec, quantised = ModelSpec.read(fused), ModelSpec.read(int8)
    spec.check_artifact(fused)
    if spec.precision != "fp32" or spec.fusion is None:
        raise DataError(f"{fused}: expected an fp32 .onnx that destseg-export fuse wrote.")
    layers = set(quantised.quantization.layers if quantised.quantization else ())
    if quantised.precision != "int8" or not layers:
        raise DataError(f"{int8}: expected an .onnx that destseg-export quantize wrote.")
    if (spec.checkpoint, spec.size) != (quantised.checkpoint, quantised.size):
        raise DataError(f"{int8}: of another checkpoint or size than {fused.name}.")
    return spec, layers


def _import() -> tuple[Any, Any]:
    try:
        return import_nncf(), import_openvino()
    except ImportError as error:
        raise BackendError(
            "NNCF is not installed. pip install -c constraints.txt 'destseg-deploy[nncf]'."
        ) from error


def _float_operators(model: Any, layers: Collection[str]) -> list[str]:
    """Return the operators that stay float32: all other convolutions, and ``UNTOUCHED``.

    Raises:
        DataError: If a layer is not in the model, because the model was fused otherwise.
    """
    kept_out: list[str] = []
    found: set[str] = set()
    for operator in model.get_ops():
        name, kind = operator.get_friendly_name(), operator.get_type_name()
        layer = name.removesuffix(BIAS)
        if kind == "Convolution" and layer in layers:
            found.add(layer)
        elif kind in ("Convolution", *UNTOUCHED) or _reads_sigmoid(operator):
            kept_out.append(name)
    if missing := sorted(set(layers) - found):
        raise DataError(
            f"layer {missing[0]!r} is not in the fused graph. Write it with destseg-export fuse "
            "PLAIN --for-int8, as quantize does."
        )
    return kept_out


def _reads_sigmoid(operator: Any) -> bool:
    """Return whether it resizes the map: in 8 bits, its probabilities would be on a coarse grid."""
    sources = (value.get_source_output().get_node() for value in operator.inputs())
    return any(source.get_type_name() == "Sigmoid" for source in sources)
