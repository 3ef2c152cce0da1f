"""Wrong graphs, and how many of them the gate lets pass: none.

They run on the shared network of 64 x 64 pixels, with images that show as little as a user's may.
"""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from PIL import Image

from destseg_deploy.errors import BackendError, DataError, ExportError, ParityError
from destseg_deploy.loading import load
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import BatchRange, Budget, InputSpec, ModelSpec
from destseg_export.frames import Frames, verification_frames
from destseg_export.half.convert import HalfReport, to_half
from destseg_export.half.emulate import open_graph, undo
from destseg_export.parity import (
    BUDGETS,
    answer,
    check_parity,
    check_sight,
    compare,
    measure_parity,
)
from tests.export.half.cases import SPREAD, with_opset
from tests.export.mutants import MUTANTS


class Once:
    """A predictor that computes each frame once: the images of all users share most frames."""

    def __init__(self, predictor: Predictor) -> None:
        self.spec = predictor.spec
        self._predictor = predictor
        self._known: dict[bytes, Prediction] = {}

    def stream(self, images, batch_size=1):
        for image in images:
            if (key := image.tobytes()) not in self._known:
                self._known[key] = next(self._predictor.stream([image]))
            yield self._known[key]


CAMERAS = ("flat", "black and white", "good")


@pytest.fixture(scope="module")
def cameras(tmp_path_factory, category) -> dict[str, list]:
    """Images as users give them, that show little: two flat ones, or good parts alone."""
    folder = tmp_path_factory.mktemp("images")

    def write(name: str, halves: tuple[int, int]) -> object:
        image = np.full((64, 64, 3), halves[0], np.uint8)
        image[:, 32:] = halves[1]
        Image.fromarray(image).save(folder / name)
        return folder / name

    return {
        "flat": [write("a.png", (90, 91)), write("b.png", (140, 141))],
        "black and white": [write("black.png", (0, 1)), write("white.png", (254, 255))],
        "good": sorted(category.glob("train/good/*"))[:2],
    }


@pytest.fixture(scope="module")
def passing(onnx_artifact, checkpoint, cameras):
    """Return a function from a precision to the graphs that pass: images -> names."""
    trained, plain = ModelSpec.read(checkpoint), onnx.load(onnx_artifact)
    spec = replace(ModelSpec.read(onnx_artifact), input=InputSpec(64, 64, BatchRange(1, 1, 1)))
    shown = {camera: verification_frames(cameras[camera], trained, (64, 64)) for camera in cameras}
    with load(checkpoint) as network:
        known = Once(network)
        wanted = {camera: answer(known, frames) for camera, frames in shown.items()}

    def gate(precision: str, rounding: Budget | None = None) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {camera: [] for camera in shown}
        half = precision != "fp32"
        base, made = to_half(with_opset(plain, 22), precision) if half else (plain, None)
        for name in ("right", *MUTANTS):
            try:
                graphs = _compared(_graph(base, name), made)
            except ExportError:
                continue
            passed = set(shown)
            for graph, emulated in graphs:
                budget = rounding if emulated else BUDGETS["fp32"]
                with open_graph(graph, spec, emulated=emulated) as predictor:
                    candidate = Once(predictor)
                    passed = {c for c in passed if _passes(wanted[c], candidate, shown[c], budget)}
                if not passed:
                    break
            for camera in passed:
                found[camera].append(name)
        return found

    return gate


def _compared(graph: onnx.ModelProto, made: HalfReport | None) -> list[tuple]:
    """Return the graphs that the gate compares, and whether their rounding is emulated.

    Raises:
        ExportError: If half weights are not the nearest to the float32 ones.
    """
    if made is None:
        return [(graph, False)]
    return [(undo(graph, made.originals), False), (graph, True)]


def _graph(base: onnx.ModelProto, name: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(base)
    if name != "right":
        MUTANTS[name](proto)
    return proto


def _passes(wanted: Prediction, candidate: Once, frames: Frames, budget: Budget) -> bool:
    try:
        # A comparison refuses where one frame differs by more, and most mutants do on the last.
        for image, expected in zip(frames.images[::-1], wanted.anomaly_map[::-1], strict=True):
            found = next(candidate.stream([image])).anomaly_map[0]
            if not np.abs(expected - found).max() <= budget.anomaly_map:
                return False
        parity = compare(wanted, candidate, frames)
        check_sight(parity, "mutant")
        check_parity(parity, budget, "mutant")
    except (ParityError, BackendError):  # answers outside of [0, 1] are the latter
        return False
    return True


def test_no_wrong_graph_passes_in_fp32(passing):
    assert len(MUTANTS) > 50
    assert passing("fp32") == {camera: ["right"] for camera in CAMERAS}


def test_no_wrong_graph_passes_in_half(passing):
    """A half graph is compared in fp32 before its rounding, which would hide a tenth of a layer."""
    assert passing("fp16", rounding=SPREAD) == {camera: ["right"] for camera in CAMERAS}


def test_a_constant_image_is_refused(checkpoint, cameras, tmp_path):
    """So is one of 1 x 1 pixel, which is constant."""
    trained = ModelSpec.read(checkpoint)
    for size, grey in (((64, 64), 0), ((1, 1), 200)):
        path = tmp_path / f"{grey}.png"
        Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(path)
        words = rf"{path}: all {size[0]}x{size[1]} pixels have the colour \[{grey}, "
        with pytest.raises(DataError, match=words):
            verification_frames([*cameras["good"], path], trained, (64, 64))
    with pytest.raises(DataError, match="the 2 images are all the same"):
        verification_frames(cameras["good"][:1] * 2, trained, (64, 64))


class _Blind:
    """Answers that do not depend on some pixels, or on some colours."""

    def __init__(self, region: bool) -> None:
        self._region = region

    def stream(self, images, batch_size=1):
        for image in images:
            used = image.mean(axis=2) if self._region else image[..., :2].mean(axis=2)
            maps = (used / 255).astype(np.float32)
            if self._region:
                maps[8:12, 40:44] = 0.3
            yield Prediction(maps[None], maps.max(axis=(0, 1), keepdims=True)[0])


@pytest.mark.parametrize(
    ("region", "words"),
    [(True, r"row 8, column 40: .*0\.00e"), (False, "cannot see the colour blue")],
)
def test_what_the_frames_cannot_show_is_named(checkpoint, region, words):
    frames = verification_frames(None, ModelSpec.read(checkpoint), (64, 64))
    wanted = list(_Blind(region).stream(frames.images))
    maps = np.concatenate([answer.anomaly_map for answer in wanted])
    answers = Prediction(maps, np.concatenate([answer.score for answer in wanted]))
    moved = tuple(
        max(float(np.abs(maps[a] - maps[b]).max()) for a, b in pairs) for pairs in frames.channels
    )
    parity = replace(measure_parity(answers, answers), channels=moved)
    with pytest.raises(ParityError, match=words):
        check_sight(parity, "x.onnx")


def test_a_flat_network_is_measured_by_its_own_span():
    """Its answers differ by less than fp16's budget, and an artifact that answers 0 would pass."""
    noise = np.random.default_rng(0).random((6, 16, 16), np.float32) * np.float32(8e-3)
    wanted = Prediction(noise, noise.max(axis=(1, 2)))
    off = Prediction(np.zeros_like(noise), wanted.score)
    parity = measure_parity(wanted, off)
    assert parity.map_max_abs < BUDGETS["fp16"].anomaly_map
    with pytest.raises(ParityError, match=r"of its span \(allowed 4\.00%\)"):
        check_parity(parity, replace(BUDGETS["fp16"], map_mean=1.0), "zero.onnx")
    check_parity(measure_parity(wanted, wanted), BUDGETS["fp16"], "same.onnx")
