"""The exporter's tests need its libraries; where one is not installed, none is collected.

Tracing a graph takes 6 s, so those that several files look at are traced here.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

from destseg_deploy.spec import BatchRange

MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
collect_ignore_glob = ["*"] if MISSING else []

SIZE = (96, 160)
CAMERA = {"input_size": SIZE, "map_size": SIZE, "batch": BatchRange(2, 2, 2), "opset": 23}
"""What ``camera`` is exported with."""


def pytest_report_header():
    """Say why nothing was collected here."""
    return [f"tests/export is left out: no {', '.join(MISSING)}"] if MISSING else []


@pytest.fixture(scope="session")
def few(category) -> list[Path]:
    """Three images to compare on: without any, 16 are drawn, and spoiled ones beside them."""
    return sorted(category.glob("test/good/*"))


@pytest.fixture
def few_drawn(monkeypatch) -> None:
    """Draw 12 frames beside the images and not 21, where the test is of what happens around."""
    from destseg_export import frames

    monkeypatch.setattr(frames, "SPOILED", 1)
    monkeypatch.setattr(frames, "RENDERED", 0)
    monkeypatch.setattr(frames, "GRAINS", (4, 64))


@pytest.fixture(scope="session")
def camera(checkpoint, few, tmp_path_factory) -> Path:
    """Exported for a camera of 96 x 160 pixels, maps in camera pixels, batches of 2, opset 23."""
    from destseg_export.parity import Verification
    from destseg_export.to_onnx import OnnxOptions, export_onnx

    path = tmp_path_factory.mktemp("camera") / "cable-fp32.onnx"
    options, verification = OnnxOptions(**CAMERA), Verification(few)
    export_onnx(checkpoint, path, options=options, verification=verification)
    return path


@pytest.fixture(scope="session")
def full_size(model, tmp_path_factory):
    """The graph and spec of a checkpoint as the authors publish it: 256 x 256 pixels, traced.

    It is a state dict without a spec; it gets the paper's sizes.
    """
    import torch

    from destseg_deploy.models.weights import load_checkpoint
    from destseg_export.studies.builds import BATCH
    from destseg_export.to_onnx import OnnxOptions, served_spec, trace

    path = tmp_path_factory.mktemp("official") / "DeSTSeg_MVTec_5000_cable.pckl"
    torch.save(model.state_dict(), path)
    loaded, trained = load_checkpoint(path)
    path.unlink()  # 140 MB
    spec = served_spec(trained, OnnxOptions(batch=BATCH))
    return trace(loaded, spec, 18), spec
