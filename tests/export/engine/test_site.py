"""open_site: the builder, GPU and targets that fit, or one line that says what is missing."""

import enum
import types

import pytest

from destseg_deploy.errors import BackendError, ExportError
from destseg_export.engine import site as engine_site
from destseg_export.engine.site import known_targets, open_site, read_targets
from tests.fakes.device import FakeDevice


class ComputeCapability(enum.Enum):
    NONE = 0
    CURRENT = 1
    SM75 = 75
    SM86 = 86
    SM89 = 89


@pytest.fixture
def machine(monkeypatch):
    """A machine to furnish: ``gpu`` None or a device, ``libraries`` by builder."""
    here = types.SimpleNamespace(gpu=None, libraries={})

    def open_device(device):
        if here.gpu is None:
            raise BackendError("no CUDA driver here.")
        return here.gpu

    def load_library(builder):
        if builder not in here.libraries:
            raise BackendError(f"{builder} is not usable here (No module). Install it.")
        return here.libraries[builder]

    monkeypatch.setattr(engine_site, "open_device", open_device)
    monkeypatch.setattr(engine_site, "load_library", load_library)
    return here


TENSORRT = types.SimpleNamespace(__version__="11.4.0.106")
RTX = types.SimpleNamespace(__version__="1.7.1.116", ComputeCapability=ComputeCapability)


@pytest.mark.parametrize(
    ("texts", "targets"),
    [
        (["sm86"], ("sm_86",)),
        (["SM_89", "8.6", "sm86"], ("sm_86", "sm_89")),
        (["12.0", "75", " sm120 "], ("sm_75", "sm_120")),
        ([], ()),
    ],
)
def test_targets_are_read_as_people_write_them(texts, targets):
    assert read_targets(texts) == targets


@pytest.mark.parametrize("text", ["", "ampere", "sm", "sm_8", "8.", "8.66", "sm1234", "٨.٦"])
def test_what_is_no_target_is_refused(text):
    with pytest.raises(ExportError, match=r"expected a compute capability such as sm86 or 8\.6"):
        read_targets([text])


def test_a_library_is_asked_for_its_targets():
    assert known_targets(RTX) == ("sm_75", "sm_86", "sm_89")
    assert known_targets(TENSORRT) == ()


def test_tensorrt_builds_for_the_gpu_at_hand(machine):
    machine.gpu, machine.libraries = FakeDevice(), {"tensorrt": TENSORRT, "tensorrt-rtx": RTX}
    with open_site() as site:
        assert (site.builder, site.targets, site.gpu) == ("tensorrt", ("sm_90",), machine.gpu.name)
        assert site.runs_here
        assert site.title == "TensorRT 11.4.0.106"
    assert machine.gpu.closed


def test_named_targets_take_rtx_and_need_no_gpu(machine):
    machine.libraries = {"tensorrt": TENSORRT, "tensorrt-rtx": RTX}
    with open_site(targets=["sm89", "sm86"]) as site:
        assert (site.builder, site.targets) == ("tensorrt-rtx", ("sm_86", "sm_89"))
        assert (site.gpu, site.device, site.runs_here) == (None, None, False)


def test_rtx_takes_the_gpu_at_hand_where_tensorrt_is_not(machine):
    machine.gpu, machine.libraries = FakeDevice(sm="sm_89"), {"tensorrt-rtx": RTX}
    with open_site() as site:
        assert (site.builder, site.targets) == ("tensorrt-rtx", ("sm_89",))
        assert site.gpu is None  # it is not tuned on it
        assert site.runs_here
    with open_site(targets=["sm86"]) as site:
        assert not site.runs_here


@pytest.mark.parametrize(
    ("gpu", "libraries", "asked", "words"),
    [
        (None, {}, {}, "tensorrt-rtx is not usable here"),
        (None, {"tensorrt-rtx": RTX}, {}, r"no GPU to build for \(no CUDA driver here\).*--target"),
        (None, {"tensorrt": TENSORRT}, {"builder": "tensorrt"}, "no GPU to build for"),
        ("sm_90", {}, {}, "tensorrt is not usable.* tensorrt-rtx is not usable"),
        ("sm_90", {"tensorrt-rtx": RTX}, {}, "tensorrt is not.*target sm_90: TensorRT-RTX 1.7.1.116"
         " builds for sm_75, sm_86, sm_89 only.*Hopper"),
        (None, {"tensorrt-rtx": RTX}, {"targets": ["sm90"]}, "target sm_90: TensorRT-RTX"),
        ("sm_90", {"tensorrt": TENSORRT}, {"builder": "tensorrt", "targets": ["sm86"]},
         "target sm_86: TensorRT builds for the GPU it runs on only"),
        (None, {"tensorrt": TENSORRT}, {"builder": "tensorrt", "targets": ["sm86"]},
         "target sm_86: TensorRT builds for the GPU it runs on only"),
        (None, {"tensorrt": TENSORRT}, {"targets": ["sm86"]}, "tensorrt-rtx is not usable here"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(machine, gpu, libraries, asked, words):
    machine.gpu = FakeDevice(sm=gpu) if gpu else None
    machine.libraries = libraries
    with pytest.raises((BackendError, ExportError), match=words), open_site(**asked):
        pass
    assert gpu is None or machine.gpu.closed
