"""Which binding is opened, and the real ones, by name and over a driver that is a fake."""

import importlib
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda import device as bindings
from destseg_deploy.runtime.cuda.driver import Driver
from destseg_deploy.runtime.cuda.nvrtc import Nvrtc, _candidates
from tests.deploy.runtime.cuda.test_device import FILL, real_gpu
from tests.fakes import driver as fake_driver

ROOT = Path(__file__).resolve().parents[4]


# --- the choice


class Opened:
    def __init__(self, index):
        self.index = index


@pytest.fixture
def installed(monkeypatch):
    """Bindings by name; the rest cannot be imported. Their devices say what they are."""
    there = {}

    def import_module(name):
        file = name.rsplit(".", 1)[1]
        for binding, (module, kind, _) in bindings.BINDINGS.items():
            if module == file and binding in there:
                return types.SimpleNamespace(**{kind: type(binding, (Opened,), {})})
        raise ModuleNotFoundError(f"No module named {file}")

    monkeypatch.setattr(bindings.importlib, "import_module", import_module)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    there["driver"] = True
    return there


def _chosen(device="cuda", **options):
    opened = bindings.open_device(device, **options)
    return type(opened).__name__, opened.index


def _torch(works):
    return types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: works))


def test_torch_is_taken_only_where_it_is_loaded_and_works(installed, monkeypatch):
    installed.update({"torch": True, "cuda.core": True, "pycuda": True})
    assert _chosen() == ("cuda.core", 0)
    monkeypatch.setitem(sys.modules, "torch", _torch(False))
    assert _chosen() == ("cuda.core", 0)
    monkeypatch.setitem(sys.modules, "torch", _torch(True))
    assert _chosen("cuda:1") == ("torch", 1)


def test_the_next_one_is_taken_where_one_is_missing(installed):
    assert _chosen() == ("driver", 0)
    installed["pycuda"] = True
    assert _chosen() == ("pycuda", 0)
    installed["cuda.core"] = True
    assert _chosen() == ("cuda.core", 0)


@pytest.mark.parametrize("binding", bindings.BINDINGS)
def test_a_binding_can_be_forced(installed, binding):
    installed[binding] = True
    assert _chosen("cuda:3", binding=binding) == (binding, 3)


@pytest.mark.parametrize("binding", ["torch", "cuda.core", "pycuda"])
def test_a_forced_binding_that_is_missing_says_how_to_get_it(installed, binding):
    with pytest.raises(
        BackendError, match=rf"binding '{binding}' is not usable.*It needs .*'auto'"
    ):
        bindings.open_device("cuda", binding=binding)


def test_a_binding_that_is_there_but_has_no_gpu_is_not_skipped(installed, monkeypatch):
    """The others would say the same, and less well."""
    installed["cuda.core"] = True

    def refuse(self, index):
        raise BackendError("no GPU")

    monkeypatch.setattr(Opened, "__init__", refuse)
    with pytest.raises(BackendError, match="no GPU"):
        bindings.open_device("cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda:", "cuda:x", "gpu", "", "cuda:-1"])
def test_other_devices_are_refused(device):
    with pytest.raises(BackendError, match=rf"device '{device}(:0)?': expected .*cuda:<index>"):
        bindings.open_device(device)


def test_other_bindings_are_refused():
    with pytest.raises(BackendError, match=r"binding 'cupy': expected auto, torch, cuda\.core"):
        bindings.open_device("cuda", binding="cupy")


def test_a_machine_without_a_driver_says_so():
    if real_gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"device 'cuda:0': no NVIDIA driver with a GPU on this"):
        bindings.open_device("cuda", binding="driver")


def test_importing_what_picks_a_binding_imports_none():
    code = (
        "import sys, destseg_deploy.runtime.cuda.device, destseg_deploy.runtime.trt.runtime\n"
        "heavy = {'torch', 'cuda', 'pycuda', 'tensorrt', 'onnx', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# --- the driver and NVRTC themselves


def test_an_old_driver_is_named_by_what_it_lacks():
    with pytest.raises(BackendError, match=r"has no cuMem.*Update it to one for CUDA 11\.4"):
        Driver(types.SimpleNamespace())


def test_a_machine_without_nvrtc_says_what_to_install(monkeypatch):
    def refuse(name):
        raise OSError(name)

    monkeypatch.setattr("destseg_deploy.runtime.cuda.nvrtc.ctypes.CDLL", refuse)
    with pytest.raises(BackendError, match="pip install nvidia-cuda-nvrtc for CUDA 13"):
        Nvrtc.open()


def test_nvrtc_is_looked_for_in_packages_first_the_newest_first(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "destseg_deploy.runtime.cuda.nvrtc.site.getsitepackages", lambda: [tmp_path]
    )
    monkeypatch.setattr("destseg_deploy.runtime.cuda.nvrtc.sys.platform", "linux")
    for name in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12"):
        path = tmp_path / "nvidia" / name
        path.parent.mkdir(parents=True)
        path.touch()
    found = [Path(name).name for name in _candidates()]
    assert found[:2] == ["libnvrtc.so.13", "libnvrtc.so.12"]
    assert found[-3:] == ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"]


def test_the_sibling_of_nvrtc_is_loaded_first(monkeypatch, tmp_path):
    """NVRTC 13 finds it in no other way when it compiles."""
    names = "libnvrtc-builtins.so.13.0", "libnvrtc.so.13"
    for name in names:
        (tmp_path / name).touch()
    loaded = []
    nvrtc = "destseg_deploy.runtime.cuda.nvrtc"
    monkeypatch.setattr(f"{nvrtc}.ctypes.CDLL", loaded.append)
    monkeypatch.setattr(f"{nvrtc}._candidates", lambda: iter([str(tmp_path / names[1])]))
    Nvrtc.open()
    assert loaded == [str(tmp_path / name) for name in names]


def test_the_real_nvrtc_compiles_for_each_architecture():
    try:
        compiler = Nvrtc.open()
    except BackendError as error:
        pytest.skip(str(error))
    for sm in ("sm_75", "sm_86", "sm_90", "sm_120"):
        assert compiler.compile(FILL, sm, ["-DOFFSET=0"])[:4] == b"\x7fELF"
    with pytest.raises(BackendError, match='identifier "OFFSET" is undefined'):
        compiler.compile(FILL, "sm_90")
    with pytest.raises(BackendError, match="NVRTC: the kernel does not compile for sm_1"):
        compiler.compile(FILL, "sm_1", ["-DOFFSET=0"])


# --- the bindings themselves


def _installed(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def test_the_suite_passes_with_the_real_bindings_on_a_fake_driver(tmp_path):
    """In a process of its own, whose driver and NVRTC are the fakes under the real names.

    pycuda is not among them: it loads only where each of the driver's functions is, used or not.
    It passed when it was linked with stubs for the other 110.
    """
    if not fake_driver.compiler():
        pytest.skip("needs a C compiler for the fake driver")
    if real := [one for one in _candidates() if Path(one).is_absolute()]:
        pytest.skip(f"{real[0]} is found before the fake, and compiles for no fake driver")
    for name in ("libcuda.so.1", "libnvrtc.so.13"):
        fake_driver.build(tmp_path, name)
    bindings = ["driver", *(["cuda.core"] if _installed("cuda.core") else [])]
    wanted = f"({' or '.join(bindings)}) and not fake and not TestErrors"
    paths = [str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")]
    suite = ["tests/deploy/runtime/cuda/test_device.py", "-k", wanted]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *suite],
        cwd=ROOT,
        env={
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
            "DESTSEG_FAKE_DRIVER": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert f"{12 * len(bindings)} passed" in done.stdout, done.stdout
    assert "skipped" not in done.stdout, done.stdout


def test_torch_has_what_the_adapter_uses():
    torch = pytest.importorskip("torch")
    assert {"dtype", "device", "pin_memory"} <= set(torch.empty.__doc__.replace("=", " ").split())
    for name in ("is_available", "init", "current_stream"):
        assert callable(getattr(torch.cuda, name))
    tensor = torch.empty(8, dtype=torch.uint8)
    assert tensor.data_ptr() == tensor.numpy().ctypes.data


def test_cuda_core_has_what_the_adapter_uses():
    core = pytest.importorskip("cuda.core")
    for name in ("set_current", "create_stream", "allocate"):
        assert callable(getattr(core.Device, name))
    assert "stream" in core.Device.allocate.__doc__
    assert inspect.signature(core.LegacyPinnedMemoryResource.allocate).parameters.keys() >= {"size"}
    assert hasattr(core.Buffer, "handle")
    assert "stream" in core.Buffer.close.__doc__


def test_devices_keep_the_protocol():
    """mypy checks the adapters only where it sees them used as a ``Gpu``."""
    from destseg_deploy.runtime.cuda.protocols import Gpu
    from tests.fakes.device import FakeDevice

    names = {name for name in vars(Gpu) if not name.startswith("_")}
    names |= set(Gpu.__annotations__)
    assert len(names) > 12
    fake = FakeDevice()
    for name in names:
        assert hasattr(fake, name), name
        known = hasattr(bindings.DriverGpu, name)
        assert known or name in inspect.getsource(bindings), name
