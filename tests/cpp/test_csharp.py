"""The C# assembly and its program, compiled and run with Mono: the scores are Python's."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.loading import load
from tests.cpp.csharp import compile_, mono
from tests.cpp.library import CPP
from tests.cpp.test_parity import noise, read, real_images, references, write_ppm
from tests.tiny import write_packing_model


@pytest.fixture(scope="module")
def program(assembly) -> Path:
    target = assembly.parent / "Inspect.exe"
    compile_(target, f"-r:{assembly}", *sorted((CPP / "csharp/Inspect").glob("*.cs")))
    return target


def test_frames_batches_pointers_defects_and_closing(library, assembly, onnx_artifact):
    library.need("onnxruntime")
    compile_(assembly.parent / "Tests.exe", f"-r:{assembly}", CPP / "test/Tests.cs")
    done = mono(assembly.parent / "Tests.exe", onnx_artifact)
    assert done.returncode == 0, done.stderr + done.stdout
    lines = iter(done.stdout.splitlines())
    pixels = (np.arange(64 * 64 * 3) * 7919 >> 3).astype(np.uint8).reshape(64, 64, 3)
    values = (np.arange(64 * 64) % 4096).astype(np.uint16).reshape(64, 64)
    with load(onnx_artifact, backend="onnxruntime") as python:
        one = python(pixels)
        grey = python(values, frame_format="mono12").score
    scores = references("onnxruntime", onnx_artifact)

    def words(*found: np.float32) -> str:
        return " ".join(str(np.float32(score).view(np.int32)) for score in found)

    assert next(lines) == "64 64 cable"
    assert next(lines) == words(scores(pixels)[1])
    batch = next(lines).split()  # in one batch, where the last bits may differ
    alone = [scores(pixels[..., ::-1].copy())[1], grey[0], scores(pixels[:60, :50].copy())[1]]
    found = np.array(batch, np.int32).view(np.float32)
    assert np.abs(found - np.array(alone)).max() < 1e-5
    assert next(lines) == words(scores(pixels[::-1].copy())[1])
    assert float(next(lines)) == pytest.approx(float(one.anomaly_map.astype(np.float64).sum()))
    (defects,) = one.defects(0.4)
    count, *listed = next(lines).split()
    assert int(count) == len(defects) > 0
    for text, defect in zip(listed, defects, strict=True):
        *whole, centroid = text.split(",")
        expected = (*defect.box, defect.area, *defect.peak_at, len(defect.contour))
        assert tuple(map(int, whole)) == expected
        assert float(centroid) == defect.centroid[0]
    assert next(lines).startswith("short pixels: 9 bytes, expected at least 12288")
    assert next(lines).startswith("none Shape frames: none were passed.")
    assert next(lines).startswith("missing Backend 検査.onnx: no such file.")
    assert next(lines) == "16 tickets"
    assert next(lines) == "True"
    assert next(lines).startswith("again Argument ticket 1: not open.")
    assert next(lines) == "True 20 10 20 10.0"
    assert next(lines).startswith("outside Shape part: 30x5 pixels at (40, 0)")
    assert next(lines) == "8192 True"
    assert re.fullmatch(
        r"Info .*\.onnx: opened by onnxruntime .* on cpu, 2 calls at once\.", next(lines)
    )
    assert next(lines) == "closed disposed"
    assert next(lines) == "closed while running"


def scores_of(done: subprocess.CompletedProcess[str]) -> list[np.float32]:
    assert done.returncode in (0, 2), done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if ".ppm " in line]
    return [np.float32(score) for _, score, _ in lines]


def test_the_program_prints_pythons_scores(program, library, onnx_artifact, tmp_path):
    library.need("onnxruntime")
    frames = [noise((64, 64), 0), noise((90, 70), 1)]
    paths = [tmp_path / f"ü{i}.ppm" for i in range(2)]
    for path, frame in zip(paths, frames, strict=True):
        write_ppm(path, frame)
    reference = references("onnxruntime", onnx_artifact)
    found = scores_of(mono(program, onnx_artifact, *paths, "--threads", 1))
    assert found == [reference(frame)[1] for frame in frames]


def test_the_program_reads_bmp(program, library, packing, tmp_path):
    """Its rows end with a gap and are stored bottom up; the score is the first pixel."""
    library.need("onnxruntime")
    frame = noise((40, 23), 3)
    Image.fromarray(frame).save(tmp_path / "frame.bmp")
    write_ppm(tmp_path / "frame.ppm", frame)
    done = mono(program, packing[0], tmp_path / "frame.bmp", tmp_path / "frame.ppm")
    first, second = (line.split()[1] for line in done.stdout.splitlines() if "frame." in line)
    assert first == second
    (tmp_path / "frame.bmp").write_bytes((tmp_path / "frame.bmp").read_bytes()[:-1])
    done = mono(program, packing[0], tmp_path / "frame.bmp")
    assert (done.returncode, done.stderr.endswith("frame.bmp: is cut off\n")) == (1, True)


def test_the_program_refuses_with_one_line(program, onnx_artifact, tmp_path):
    frame = tmp_path / "frame.ppm"
    write_ppm(frame, noise((4, 4), 0))
    for arguments, words in (
        ([], "Usage: Inspect"),
        ([tmp_path / "none.onnx", frame], "no such file"),
        ([onnx_artifact, onnx_artifact], "no binary PGM or PPM"),
        ([onnx_artifact, tmp_path], f"{tmp_path}: is a folder"),
        ([onnx_artifact, frame, "--threads", "abc"], "--threads abc: expected a whole number"),
        ([onnx_artifact, frame, "--threads", 99999999999], "--threads 99999999999: expected"),
    ):
        done = mono(program, *arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert re.fullmatch(r"Error: .*\n", done.stderr)


def test_a_model_without_a_threshold_says_neither_ok_nor_ng(program, library, packing, tmp_path):
    library.need("onnxruntime")
    frame = tmp_path / "frame.ppm"
    write_ppm(frame, np.zeros((40, 24, 3), np.uint8))
    for threshold, status, word in ((packing[1].threshold, 0, "OK"), (None, 3, "undecided")):
        write_packing_model(tmp_path / "tiny.onnx", (40, 24), threshold=threshold)
        done = mono(program, tmp_path / "tiny.onnx", frame, frame)
        assert (done.returncode, done.stdout.split()[2::3]) == (status, [word, word])


def test_without_the_library_it_says_what_is_missing(assembly, onnx_artifact, tmp_path):
    sources = [*(CPP / "csharp/Destseg").glob("*.cs"), *(CPP / "csharp/Inspect").glob("*.cs")]
    compile_(tmp_path / "Alone.exe", *sources)
    done = mono(tmp_path / "Alone.exe", onnx_artifact, tmp_path / "frame.ppm")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: destseg: its library was not found. Put destseg.dll")


def test_real_images_have_pythons_scores(program, library, onnx_artifact, shared, tmp_path):
    """``DESTSEG_CPP_IMAGES`` sets how many; 160 were compared by hand."""
    library.need("onnxruntime")
    count = int(os.environ.get("DESTSEG_CPP_IMAGES", "8"))
    listed = real_images(shared / "datasets/mvtec/screw")
    if not listed:
        pytest.skip(f"no images in {shared}/datasets/mvtec/screw")
    frames = [read(path) for path in listed[:: max(1, len(listed) // count)][:count]]
    paths = [tmp_path / f"{i:03d}.ppm" for i in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        write_ppm(path, frame)
    reference = references("onnxruntime", onnx_artifact)
    found = scores_of(mono(program, onnx_artifact, *paths, "--threads", 1))
    assert found == [reference(frame)[1] for frame in frames]
    assert len(found) == len(frames)
    print(f"{len(found)} images: the same bits in C# on Mono as in Python")
