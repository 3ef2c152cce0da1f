"""The library gives what Python gives: the same artifact, back end and frames, bit for bit."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.loading import load
from destseg_deploy.options import OpenVinoOptions, OrtOptions
from tests.cpp.library import Handle, Refused, frame_of

THREADS = 1
"""In both languages; so that the two do not wait for each other's threads."""

SIZES = [(64, 64), (256, 256), (100, 37), (64, 200)]


def references(backend: str, path: Path):
    """Return a function frame -> (map, score), in Python, on the same back end."""
    pytest.importorskip(backend)
    kinds = {"onnxruntime": OrtOptions, "openvino": OpenVinoOptions}
    predictor = load(path, options=kinds[backend](threads=THREADS))

    def score(frame: np.ndarray):
        prediction = predictor(frame)
        return prediction.anomaly_map[0], prediction.score[0]

    return score


def noise(size: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def assert_equal(handle: Handle, reference, frames: list[np.ndarray]) -> np.ndarray:
    """Compare frames one at a time, as a line does; return the maps."""
    found = []
    for frame in frames:
        anomaly_map, score = reference(frame)
        maps, scores = handle.scores([frame])
        assert np.array_equal(maps[0], anomaly_map)
        assert scores[0] == score
        found.append(maps[0])
    return np.array(found)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_network_on_frames_of_any_size(library, onnx_artifact, backend):
    frames = [noise(size, seed) for seed, size in enumerate(SIZES)]
    with library.open(onnx_artifact, library.need(backend), threads=THREADS) as handle:
        maps = assert_equal(handle, references(backend, onnx_artifact), frames)
        assert np.abs(maps[0] - maps[1]).max() > 0.01  # another frame's map is no match
        assert maps.std() > 0.01


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_frame_in_tiles(library, tiled_artifact, backend):
    """The graph cuts, blends and masks, so that the library needs no code for it."""
    frames = [noise((90, 108), seed) for seed in range(2)]
    with library.open(tiled_artifact, library.need(backend), threads=THREADS) as handle:
        maps = assert_equal(handle, references(backend, tiled_artifact), frames)
        assert np.abs(maps[0] - maps[1]).max() > 0.01
        assert (maps[:, 0] == 0).all()  # outside of the region
        with pytest.raises(Refused, match="90"):
            handle.scores([noise((64, 64), 0)])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_batches(library, onnx_artifact, backend):
    """Python groups frames by the same optimum, so even its batching is the same."""
    frames = [noise((64, 64), seed) for seed in range(5)]
    with library.open(onnx_artifact, library.need(backend), threads=THREADS) as handle:
        maps, scores = handle.scores(frames)
        if backend == "onnxruntime":
            prediction = load(onnx_artifact, options=OrtOptions(threads=THREADS))(np.stack(frames))
            assert np.array_equal(maps, prediction.anomaly_map)
            assert np.array_equal(scores, prediction.score)
        alone = np.array([handle.scores([frame])[1][0] for frame in frames])
    assert np.abs(scores - alone).max() < 1e-5


def test_the_back_ends_agree(library, onnx_artifact):
    frame = noise((64, 64), 0)
    answers = []
    for backend in ("onnxruntime", "openvino"):
        with library.open(onnx_artifact, library.need(backend), threads=THREADS) as handle:
            answers.append(handle.scores([frame]))
    (first, _), (second, _) = answers
    assert np.abs(first - second).max() < 1e-4
    assert np.abs(first - np.rot90(second, axes=(1, 2))).max() > 1e-2


def test_openvino_computes_in_float32(library, onnx_artifact):
    """Its own default would be bfloat16 on processors that have it: another answer."""
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().compile_model(str(onnx_artifact), "CPU")
    if "bfloat16" not in str(model.get_property("INFERENCE_PRECISION_HINT")):
        pytest.skip("this processor has no bfloat16, so OpenVINO's default is float32 here")
    frame = noise((64, 64), 0)
    with library.open(onnx_artifact, library.need("openvino")) as handle:
        maps, _ = handle.scores([frame])
    default = model({"image": frame[None]})["anomaly_map"]
    assert np.abs(default - maps).max() > 1e-3


def real_images(folder: Path) -> list[Path]:
    return sorted(folder.rglob("test/**/*.png")) or sorted(folder.rglob("*.png"))


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("folder", ["mvtec/screw", "mvtec_fullres/screw"])
def test_real_images(library, onnx_artifact, shared, backend, folder):
    """Camera images through the host's resize and a random network: 256 and 1024 px."""
    # All of them with a trained network, below: most of these seconds are the network's.
    paths = real_images(shared / "datasets" / folder)[:: 16 if backend == "openvino" else 4]
    if not paths:
        pytest.skip(f"no images in {shared}/datasets/{folder}")
    with library.open(onnx_artifact, library.need(backend), threads=THREADS) as handle:
        assert_equal(handle, references(backend, onnx_artifact), [read(path) for path in paths])


ARTIFACTS = [Path(path) for path in os.environ.get("DESTSEG_CPP_ARTIFACTS", "").split(":") if path]


@pytest.mark.skipif(not ARTIFACTS, reason="DESTSEG_CPP_ARTIFACTS names no trained .onnx files")
@pytest.mark.parametrize("path", ARTIFACTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_real_image_with_a_trained_network(library, shared, backend, path):
    reference = references(backend, path)
    with library.open(path, library.need(backend), threads=THREADS) as handle:
        info = handle.info
        compared = 0
        for folder in ("mvtec/screw", "mvtec_fullres/screw"):
            for image in map(read, real_images(shared / "datasets" / folder)):
                if info.any_size or image.shape[:2] == (info.height, info.width):
                    assert_equal(handle, reference, [image])
                    compared += 1
    assert compared > 0
    print(f"{path.name} on {backend}: {compared} images, equal bit for bit")


def write_ppm(path: Path, image: np.ndarray) -> None:
    kind = b"P5" if image.ndim == 2 else b"P6"
    header = kind + b"\n# a comment\n%d %d\n255\n" % image.shape[1::-1]
    path.write_bytes(header + image.tobytes())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape", [(64, 64, 3), (90, 70, 3), (50, 64)])
def test_the_c_example(examples, library, onnx_artifact, tmp_path, backend, shape):
    library.need(backend)
    frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_ppm(tmp_path / "frame.ppm", frame)
    command = [examples / "inspect_one", onnx_artifact, "frame.ppm", "map.pgm", backend]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    rgb = np.repeat(frame[..., None], 3, axis=2) if frame.ndim == 2 else frame
    anomaly_map, score = references(backend, onnx_artifact)(rgb)
    line, *defects = done.stdout.splitlines()
    word, printed, _, normalized, verdict = line.split()
    assert (word, np.float32(printed)) == ("score", score)
    assert verdict == ("NG" if score > np.float32(0.5) else "OK")
    assert done.returncode == (2 if verdict == "NG" else 0)
    assert (float(normalized) > 0.5) == (verdict == "NG")
    assert verdict == "NG" or not defects
    assert all(line.startswith("defect x ") for line in defects)
    grey = (anomaly_map * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    assert (tmp_path / "map.pgm").read_bytes() == b"P5\n64 64\n255\n" + grey.tobytes()


def test_the_c_example_refuses_with_one_line(examples, library, onnx_artifact, tmp_path):
    library.need("onnxruntime")
    good, cut, bad = (tmp_path / f"{name}.ppm" for name in ("good", "cut", "bad"))
    write_ppm(good, noise((64, 64), 0))
    cut.write_bytes(good.read_bytes()[:-1])
    bad.write_bytes(b"P6\n-1 3\n255\n")
    map_path = tmp_path / "map.pgm"
    for artifact, image, words in (
        (tmp_path / "none.onnx", good, "no such file. Expected a .onnx or .engine artifact."),
        (onnx_artifact, cut, "is cut off"),
        (onnx_artifact, bad, "is no binary PGM or PPM"),
        (onnx_artifact, tmp_path / "none.ppm", "cannot be read"),
    ):
        command = [examples / "inspect_one", artifact, image, map_path, "onnxruntime"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
        assert not map_path.exists()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_cpp_example(examples, library, onnx_artifact, tmp_path, backend):
    library.need(backend)
    frames = {f"{i}.ppm": noise(size, i) for i, size in enumerate(SIZES)}
    for name, frame in frames.items():
        write_ppm(tmp_path / name, frame)
    command = [examples / "inspect_folder", onnx_artifact, tmp_path, backend, "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    reference = references(backend, onnx_artifact)
    for line, (name, frame) in zip(lines, frames.items(), strict=False):
        found, score, verdict = line.split()
        expected = reference(frame)[1]
        assert (found, np.float32(score)) == (name, expected)
        assert verdict == ("NG" if expected > np.float32(0.5) else "OK")
    assert lines[4].startswith("latency ms: median ")
    assert lines[4].endswith("(12 calls)")
    assert sum(int(line.split()[1]) for line in lines[5:]) == 12


def test_frames_of_an_array_with_gaps(library, onnx_artifact):
    """A region of a larger image, by its stride: what a host passes without a copy."""
    whole = noise((200, 300), 3)
    region = whole[50:178, 100:264]
    view = frame_of(whole, stride=900)
    view.pixels = whole.ctypes.data + 50 * 900 + 300
    view.height, view.width = region.shape[:2]
    with library.open(onnx_artifact, library.need("onnxruntime"), threads=THREADS) as handle:
        maps, _ = handle.infer([view])
    assert np.array_equal(
        maps, load(onnx_artifact, options=OrtOptions(threads=THREADS))(region.copy()).anomaly_map
    )
