"""What half costs, and what each FP32 island is worth: a checkpoint in many variants on a test set.

Variants: fp32; each half precision as it is shipped; with no island at all (what a blind conversion
makes); and fp16 with each island removed in turn. All half variants run with their rounding
emulated. One does not: the blind conversion as ONNX Runtime's CPU provider runs it, to show that
this does not see what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from destseg_deploy.data.mvtec import list_test
from destseg_deploy.errors import ParityError
from destseg_deploy.evaluation.test_set import TestSet, compute_metrics, score_test_set
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.predictor import Predictor, resize_map
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.torch_runtime import PyTorchRuntime
from destseg_deploy.spec import ModelSpec
from destseg_export.frames import given_frames
from destseg_export.half.convert import ISLANDS, OPSETS, to_half
from destseg_export.half.emulate import open_graph
from destseg_export.half.graph_parts import split_into_parts
from destseg_export.half.ranges import measure_activations
from destseg_export.parity import BUDGETS, check_parity, measure_parity
from destseg_export.to_onnx import OnnxOptions, served_spec, trace

LISTED = 8
"""Tensors whose largest activation is listed."""


@dataclass(frozen=True)
class Variant:
    """One way to convert a checkpoint.

    Attributes:
        name: In words.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        islands: Parts that stay FP32.
        emulated: Whether half tensors are rounded, or left to ONNX Runtime's CPU provider.
    """

    name: str
    precision: str
    islands: tuple[str, ...] = tuple(ISLANDS)
    emulated: bool = True

    def convert(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """Return the variant of an FP32 graph."""
        if self.precision == "fp32":
            return proto
        return to_half(proto, self.precision, islands=self.islands)[0]


def list_variants() -> list[Variant]:
    """Return the variants in the order of the table."""
    return [
        Variant("fp32", "fp32"),
        Variant("fp16", "fp16"),
        Variant("fp16, no islands", "fp16", ()),
        Variant("fp16, no islands, not emulated", "fp16", (), emulated=False),
        *(
            Variant(f"fp16 without {gone}", "fp16", tuple(i for i in ISLANDS if i != gone))
            for gone in ISLANDS
        ),
        Variant("bf16", "bf16"),
        Variant("bf16, no islands but score", "bf16", ("score",)),  # ONNX has no bf16 TopK
    ]


def study_half(
    checkpoint: Path,
    category: Path,
    *,
    input_size: tuple[int, int] | None = None,
    threads: int = 0,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> dict[str, Any]:
    """Run all variants of a checkpoint over a test set and compare them with PyTorch.

    Args:
        checkpoint: ``.safetensors`` with its spec.
        category: A folder in the MVTec AD layout.
        input_size: Height and width of its images, to have their resize in the graph; without it
            they are resized on the host.
        threads: Threads of ONNX Runtime within an operator; 0 leaves the choice to it.
        report: Called with the images done, their total over all variants, and the variant.

    Returns:
        ``rows``, one for PyTorch and each variant: differences, metrics, and what the parity gate
        says with the budget of the precision (None where it lets the variant pass); and
        ``activations``, the largest ones where nothing is FP32.

    Raises:
        DataError, WeightsError, SpecError: If data or checkpoint cannot be read.
        ExportError: If the graph cannot be made.
    """
    chosen = list_variants()
    model, trained = load_checkpoint(checkpoint)
    spec = served_spec(trained, OnnxOptions(input_size=input_size))
    proto = trace(model, spec, max(OPSETS.values()))

    def score(predictor: Predictor, index: int, name: str) -> TestSet:
        def step(done: int, total: int, image: str) -> None:
            report(index * total + done, (len(chosen) + 1) * total, name)

        return score_test_set(predictor, category, report=step)

    reference = score(Predictor(PyTorchRuntime(model, trained)), 0, "PyTorch")
    rows = [{"variant": "PyTorch fp32", **_metrics(reference)}]
    for i, variant in enumerate(chosen, 1):
        graph = variant.convert(proto)
        with open_graph(graph, spec, emulated=variant.emulated, threads=threads) as predictor:
            rows.append(_row(variant, reference, score(predictor, i, variant.name)))
    return {"rows": rows, "activations": _activations(proto, trained, spec, category)}


def _row(variant: Variant, reference: TestSet, found: TestSet) -> dict[str, Any]:
    size = (found.maps.shape[1], found.maps.shape[2])
    wanted = np.stack([resize_map(anomaly_map, size) for anomaly_map in reference.maps])
    parity = measure_parity(
        Prediction(wanted, reference.scores), Prediction(found.maps, found.scores)
    )
    refused = None
    try:
        check_parity(parity, BUDGETS[variant.precision], variant.name)
    except ParityError as error:
        refused = str(error)
    return {
        "variant": variant.name,
        "precision": variant.precision,
        "fp32_parts": list(variant.islands),
        "emulated": variant.emulated,
        **{k: v for k, v in asdict(parity).items() if k not in ("scores", "candidate_scores")},
        "swapped_pairs": parity.swapped_pairs(0.0),
        "refused": refused,
        **_metrics(found),
    }


def _metrics(test: TestSet) -> dict[str, float | None]:
    """Return the metrics; None for those that NaN or a lack of masks makes impossible."""
    if not (np.isfinite(test.maps).all() and np.isfinite(test.scores).all()):
        return {"image_auroc": None, "pixel_auroc": None, "pixel_ap": None}
    metrics = compute_metrics(test)
    pixel = metrics.pixel
    return {
        "image_auroc": metrics.image_auroc,
        "pixel_auroc": None if pixel is None else pixel.auroc,
        "pixel_ap": None if pixel is None else pixel.ap,
    }


def _activations(
    proto: onnx.ModelProto, trained: ModelSpec, spec: ModelSpec, category: Path
) -> dict[str, Any]:
    """Measure the graph without islands, where all tensors are half, on some test images.

    ``sum_of_squares`` is what half would hold before the root of a feature vector's length, and
    ``pooled_sum`` what it would if a plane were added up in half before it is divided.
    """
    images = [sample.image for sample in list_test(category)]
    frames, _ = given_frames(images, trained, spec.size)
    graph = to_half(proto, "fp16", islands=())[0]
    found = measure_activations(graph, frames)
    steps = ir.from_proto(graph).graph
    parts = split_into_parts(steps)
    made = [(part, n.op_type, str(n.outputs[0].name)) for part, n in zip(parts, steps, strict=True)]
    length = max(found[name] for _, operator, name in made if operator == "ReduceL2")
    pooled = max(found[name] for part, _, name in made if part == "pool")
    plane = spec.network.height * spec.network.width / 16  # the segmentation network's stride is 4
    largest = sorted(found, key=found.__getitem__, reverse=True)[:LISTED]
    return {
        "images": f"{len(frames)} images of {category.as_posix()}/test",
        "largest": {name: found[name] for name in largest},
        "sum_of_squares": length**2,
        "pooled_sum": pooled * plane,
    }
