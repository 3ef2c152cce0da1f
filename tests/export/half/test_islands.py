"""The gate on half graphs that are wrong on purpose, and on the one that is right.

The student's features are 64 times as large as the shared network's, as training may make them: no
fp32 answer changes, and the sum of their squares passes 65504.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest

from destseg_deploy.errors import ExportError, ParityError
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import ModelSpec
from destseg_export.frames import given_frames
from destseg_export.half.convert import ISLANDS, to_half
from destseg_export.half.emulate import open_graph
from destseg_export.half.ranges import check_activations, measure_activations
from destseg_export.parity import Parity, check_parity, measure_parity
from tests.export.half.cases import SCALE, SPREAD, scale_student, with_opset


@dataclass
class Case:
    """The large student's graph, its spec, frames, and PyTorch's answers."""

    proto: onnx.ModelProto
    spec: ModelSpec
    frames: list[np.ndarray]
    wanted: Prediction
    _known: dict[tuple[str, ...], Parity] = field(default_factory=dict)

    def half(self, *gone: str) -> onnx.ModelProto:
        """Return the graph in fp16 without some islands."""
        kept = [part for part in ISLANDS if part not in gone]
        return to_half(self.proto, "fp16", islands=kept)[0]

    def parity(self, *gone: str) -> Parity:
        """Return how the graph without some islands differs on a GPU, measured once."""
        if gone not in self._known:
            self._known[gone] = self.measure(self.half(*gone))
        return self._known[gone]

    def measure(self, proto: onnx.ModelProto, *, emulated: bool = True) -> Parity:
        """Return how a graph differs, as a GPU rounds it or as ONNX Runtime's CPU provider does."""
        with open_graph(proto, self.spec, emulated=emulated, threads=1) as candidate:
            return measure_parity(self.wanted, candidate(self.frames))


@pytest.fixture(scope="module")
def case(onnx_artifact, model, checkpoint) -> Case:
    from destseg_deploy.runtime.torch_runtime import PyTorchRuntime

    trained = ModelSpec.read(checkpoint)
    frames, _ = given_frames(None, trained, (64, 64))
    with Predictor(PyTorchRuntime(model, trained)) as reference:
        wanted = reference(frames)
    large = scale_student(onnx.load(onnx_artifact), SCALE)
    return Case(large, ModelSpec.read(onnx_artifact), frames, wanted)


@pytest.fixture(scope="module")
def activations(case):
    """The half graph, and its activations on three frames."""
    proto = case.half()
    return proto, measure_activations(proto, case.frames[:3])


def test_scaling_the_student_changes_no_fp32_answer(case):
    assert case.measure(case.proto, emulated=False).map_max_abs < 1e-4


def test_all_islands_pass(case):
    parity = case.parity()
    check_parity(parity, SPREAD, "fp16")
    assert max(parity.coarse_map, parity.coarse_scores) < 0.05
    assert parity.map_max_abs > 1e-3, "control: half is there to be seen"


@pytest.mark.parametrize("gone", [("norm",), tuple(ISLANDS)], ids=["norm", "all"])
def test_an_overflowing_length_is_refused_and_gives_no_nan(case, gone):
    """Wrong by half of the range, without one value that a check for finite numbers would see."""
    parity = case.parity(*gone)
    assert parity.bad_values == 0
    assert parity.map_max_abs > 10 * SPREAD.anomaly_map
    assert parity.map_mean_abs > 10 * SPREAD.map_mean
    assert parity.score_max_abs > 10 * SPREAD.score
    with pytest.raises(ParityError, match="differs from PyTorch"):
        check_parity(parity, SPREAD, "wrong")


@pytest.mark.parametrize(
    ("gone", "share"),
    [("sigmoid", "coarse_map"), ("map", "coarse_map"), ("score", "coarse_scores")],
)
def test_answers_stored_in_half_are_refused_for_their_grid(case, gone, share):
    """The difference does not show them, which is why the grid is looked at."""
    parity = case.parity(gone)
    assert parity.map_max_abs <= SPREAD.anomaly_map
    assert parity.score_max_abs <= SPREAD.score
    assert getattr(parity, share) > 0.75
    with pytest.raises(ParityError, match="end in zero bits"):
        check_parity(parity, SPREAD, "coarse")


def test_stems_in_half_move_the_scores_further(case):
    """1.25 to 2 times here, where all layers move the scores; see ``ISLANDS`` for screw."""
    with_stems, without = case.parity(), case.parity("stem")
    assert without.score_mean_abs > 1.1 * with_stems.score_mean_abs


def test_without_emulation_the_overflow_passes_the_gate(case):
    """Control: what ONNX Runtime's CPU provider alone says of a graph that is wrong on a GPU."""
    parity = case.measure(case.half("norm"), emulated=False)
    check_parity(parity, SPREAD, "wrong, and nobody sees it")


def test_bf16_has_the_range_and_fewer_bits(case):
    proto, _ = to_half(
        with_opset(case.proto, 22), "bf16", islands=[p for p in ISLANDS if p != "norm"]
    )
    fp16, bf16 = case.parity(), case.measure(proto)
    assert bf16.map_mean_abs < 0.05 < bf16.control, "no overflow, though the norm is in half"
    assert bf16.map_mean_abs > 4 * fp16.map_mean_abs, "8 times, where nothing saturates"


def test_activations_are_measured_and_an_overflow_named(case, activations):
    _, found = activations
    check_activations(found, "fp16")
    largest = max(found, key=found.get)
    assert 100 < found[largest] < 65504
    larger = to_half(scale_student(case.proto, 2.0**7), "fp16")[0]
    beyond = measure_activations(larger, case.frames[:3])
    assert beyond[largest] == pytest.approx(found[largest] * 2**7, rel=1e-2)
    with pytest.raises(ExportError, match=r"an eighth of fp16's 65504.*--precision bf16"):
        check_activations(beyond, "fp16")
    check_activations(beyond, "bf16")


def test_small_batches_are_filled_up_when_activations_are_measured(case, activations):
    proto, free = activations
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    three = measure_activations(fixed, case.frames[:3])
    assert three == pytest.approx(free, rel=1e-5)
    assert np.isfinite(list(three.values())).all()
