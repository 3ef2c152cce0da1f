"""Small seeded networks and data that many tests share. Nothing is downloaded."""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kept import kept

ROOT = Path(__file__).resolve().parents[1]
NETWORK = (64, 64)


def pytest_configure() -> None:
    """Let malloc keep what is freed, where it can be told so.

    Graphs of 140 MB come and go. With new pages for each, opening one took 2.4 times as long.
    """
    trim_threshold, mmap_threshold = -1, -3  # as glibc's malloc.h numbers them
    with suppress(AttributeError, OSError, TypeError):  # another system's library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_threshold, 1 << 30)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU and PyTorch for it"))


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restore PyTorch's threads: they belong to the process, another number gives other bits."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data sets and weights, or skip."""
    folder = Path(os.environ.get("DESTSEG_DATA", ROOT.parent / "shared"))
    if not (folder / "datasets").is_dir():
        pytest.skip(f"no real data at {folder}; set DESTSEG_DATA to test on it")
    return folder


@pytest.fixture(scope="session")
def model():
    """A DeSTSeg with random weights whose maps differ between images and use the range (0, 1).

    BatchNorm's gamma and beta are random, since zero gammas would blank half the convolutions, and
    its statistics fit, since without them a random network hardly looks at its image.
    """
    torch = pytest.importorskip("torch")
    from destseg_deploy.models.destseg import DeSTSeg

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums in all processes, which share what is kept
    net = DeSTSeg()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    noise = torch.randn(8, 3, *NETWORK) * torch.linspace(0.1, 2, 8).view(8, 1, 1, 1)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        net(noise)
        for norm in norms:
            norm.momentum = 0.1
            norm.eval()
        net.eval()
        last = net.segmentation_net.head[4]
        probability = net(noise)[0].clamp(1e-6, 1 - 1e-6)
        logits = torch.logit(probability)
        last.weight.mul_(2 / logits.std())
        last.bias.sub_(logits.mean()).mul_(2 / logits.std()).sub_(2)
    torch.set_num_threads(threads)
    return net


@pytest.fixture(scope="session")
def checkpoint(model, tmp_path_factory) -> Path:
    """The model on disk, with the spec of a 64 x 64 network and a threshold."""
    from dataclasses import replace

    from destseg_deploy.models.weights import checkpoint_spec, save_checkpoint
    from destseg_deploy.spec import FileRecord, TeacherRecord
    from destseg_deploy.thresholds import by_hand

    path = tmp_path_factory.mktemp("checkpoint") / "cable.safetensors"
    spec = checkpoint_spec("cable", NETWORK, FileRecord("", ""), teacher=TeacherRecord("random"))
    save_checkpoint(model, replace(spec, threshold=by_hand(0.5)), path)
    return path


@pytest.fixture(scope="session")
def onnx_artifact(checkpoint, tmp_path_factory, pytestconfig) -> Path:
    """The checkpoint exported with batches of 1 to 4; a copy, which tests may change."""
    pytest.importorskip("onnx")
    from destseg_deploy.spec import BatchRange
    from destseg_export.to_onnx import OnnxOptions, export_onnx

    def export(folder: Path) -> None:
        options = OnnxOptions(batch=BatchRange(1, 2, 4))
        export_onnx(checkpoint, folder / "cable-fp32.onnx", options=options)

    made = kept(pytestconfig, "onnx_artifact", checkpoint, export)
    folder = shutil.copytree(made, tmp_path_factory.mktemp("onnx"), dirs_exist_ok=True)
    return folder / "cable-fp32.onnx"


@pytest.fixture
def own_tiny(tiny_artifact, tmp_path) -> Path:
    """A copy of the artifact of a few bytes, which is one test's alone."""
    shutil.copytree(tiny_artifact.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / tiny_artifact.name


@pytest.fixture
def artifact(onnx_artifact, tmp_path) -> Path:
    """A copy of the exported model, which is one test's alone."""
    shutil.copytree(onnx_artifact.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / onnx_artifact.name


@pytest.fixture(scope="session")
def tiled_artifact(checkpoint, tmp_path_factory, pytestconfig) -> Path:
    """The checkpoint exported for frames of 90 x 108 at scale 0.9: two tiles by two, and a region.

    The region leaves out a part of each tile, and three rows at the top of the frame.
    """
    pytest.importorskip("onnx")
    from destseg_deploy.spec import RegionSpec
    from destseg_export.cutting import Cut
    from destseg_export.parity import Verification
    from destseg_export.to_onnx import OnnxOptions, export_onnx

    images = tmp_path_factory.mktemp("frames")  # without any, 16 are drawn, of four tiles each
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (90, 108, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")

    def export(folder: Path) -> None:
        cut = Cut(0.9, 16, region=RegionSpec(0, 3, 100, 87))
        options = OnnxOptions(input_size=(90, 108), cut=cut)
        verification = Verification(sorted(images.iterdir()))
        path = folder / "cable-fp32.onnx"
        export_onnx(checkpoint, path, options=options, verification=verification)

    made = kept(pytestconfig, "tiled_artifact", checkpoint, export)
    folder = shutil.copytree(made, tmp_path_factory.mktemp("tiled"), dirs_exist_ok=True)
    return folder / "cable-fp32.onnx"


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory) -> Path:
    """An artifact of a few bytes for frames of any size, with maps of 64 x 64 pixels."""
    from tests.tiny import stamp, write_packing_model

    path = tmp_path_factory.mktemp("tiny") / "cable-fp32.onnx"
    stamp(path, write_packing_model(path, NETWORK, category="cable"))
    return path


@pytest.fixture(scope="session")
def category(tmp_path_factory) -> Path:
    """A small sample category, <folder>/cable, of 64 px images."""
    from destseg_deploy.data.sample.category import write_sample

    return write_sample(tmp_path_factory.mktemp("data"), size=64, train=6, good=3, per_defect=1)


@pytest.fixture
def frames() -> np.ndarray:
    """Three frames at the network's size, noise of different brightness."""
    noise = np.random.default_rng(0).integers(0, 256, (3, *NETWORK, 3))
    return (noise * np.array([0.4, 1.0, 0.7])[:, None, None, None]).astype(np.uint8)
