"""The fake ONNX Runtime offers nothing that the real one has not, under the same names."""

import inspect
from pathlib import Path

import pytest

from destseg_deploy.runtime.ort.bindings import GRAPH_ID
from destseg_deploy.runtime.ort.session import RECORD
from tests.deploy.runtime.ort.cases import PLACED
from tests.fakes import onnxruntime_module as fake

ort = pytest.importorskip("onnxruntime")

CLASSES = {
    "InferenceSession": (fake.Session, ort.InferenceSession),
    "IOBinding": (fake.Binding, ort.IOBinding),
    "SessionOptions": (fake.SessionOptions, ort.SessionOptions),
    "RunOptions": (fake.RunOptions, ort.RunOptions),
}
OURS = {"module", "options", "provider_options", "fallback", "recorded", "running", "runs"}
OURS |= {"graphs", "entries", "session", "inputs", "outputs", "stream"}
"""Attributes of the fakes for tests to look at."""

NEWER = {"get_provider_graph_assignment_info"}
"""What the runtime asks for before it uses it."""


def offered(kind, real):
    """Return the public names of a fake, its methods and what it sets in itself."""
    made = {
        fake.SessionOptions: fake.SessionOptions,
        fake.RunOptions: fake.RunOptions,
        fake.Session: lambda: fake.Session(fake.Module(None), [(fake.CPU, {})], None),
        fake.Binding: lambda: fake.Binding(None),
    }[kind]()
    names = {name for name in dir(made) if not name.startswith("_")} - OURS
    return {n for n in names if n not in NEWER or hasattr(real, n)}


@pytest.mark.parametrize("name", CLASSES)
def test_every_name_is_the_real_ones(name):
    kind, real = CLASSES[name]
    names = offered(kind, real)
    assert len(names) >= 1
    assert not {n for n in names if not hasattr(real, n)}


@pytest.mark.parametrize("name", ["InferenceSession", "IOBinding"])
def test_every_parameter_is_the_real_ones(name):
    """These are written in Python; the other classes tell no signatures."""
    kind, real = CLASSES[name]
    methods = [n for n in offered(kind, real) if callable(getattr(kind, n))]
    assert methods
    for method in methods:
        ours = inspect.signature(getattr(kind, method)).parameters
        theirs = inspect.signature(getattr(real, method)).parameters
        assert list(ours) == list(theirs), method
        assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_the_modules_functions_are_the_real_ones():
    module = fake.Module(None)
    for name in ("get_available_providers", "SessionOptions", "RunOptions"):
        assert hasattr(module, name)
        assert hasattr(ort, name)
    if hasattr(ort, "preload_dlls"):  # asked for before it is used
        theirs = inspect.signature(ort.preload_dlls).parameters
        assert set(inspect.signature(module.preload_dlls).parameters) <= set(theirs)
        assert all(p.default is not p.empty for p in theirs.values())
    ours = list(inspect.signature(module.InferenceSession).parameters)
    theirs = list(inspect.signature(ort.InferenceSession.__init__).parameters)[1:]
    assert set(ours) <= set(theirs)


def test_its_second_try_can_be_switched_off():
    """1.20 cannot; there, the providers that started tell it."""
    source = inspect.getsource(ort.InferenceSession.__init__)
    if '"enable_fallback"' not in source:
        pytest.skip("this ONNX Runtime always tries again")
    assert 'enable_fallback=int(kwargs.get("enable_fallback", 1)) == 1' in source


def test_assigned_nodes_have_the_real_names():
    if not hasattr(ort, "OrtEpAssignedNode"):
        pytest.skip("this ONNX Runtime cannot tell where nodes run")
    assert {"op_type", "name", "domain"} <= set(dir(ort.OrtEpAssignedNode))
    assert {"ep_name", "get_nodes"} <= set(dir(ort.OrtEpAssignedSubgraph))
    assert isinstance(PLACED["cuda"][fake.CUDA][0], fake.AssignedNode)


def libraries() -> bytes:
    """Return the bytes of ONNX Runtime's libraries, which hold the names of its options."""
    files = (Path(ort.__file__).parent / "capi").glob("*.so*")
    return b"".join(path.read_bytes() for path in files if "cuda" not in path.name)


def test_options_of_sessions_and_runs_are_in_the_library():
    content = libraries()
    names = [GRAPH_ID, *([RECORD] if hasattr(ort, "OrtEpAssignedNode") else [])]
    assert not [name for name in names if name.encode() + b"\0" not in content]
    assert b"session.no_such_option\0" not in content


def test_options_of_providers_are_in_the_library():
    """Only onnxruntime-gpu has these; checked by hand against 1.31.1, and here where it is."""
    from destseg_deploy.device import CUDA
    from destseg_deploy.options import OrtOptions
    from destseg_deploy.runtime.ort.providers import provider_options
    from destseg_deploy.testing import fake_spec

    if fake.TENSORRT not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    folder = Path(ort.__file__).parent / "capi"
    for name in ("cuda", "tensorrt"):
        options = OrtOptions(tensorrt=name == "tensorrt")
        content = (folder / f"libonnxruntime_providers_{name}.so").read_bytes()
        settings = provider_options(CUDA, fake_spec(), options, folder)[0][1]
        assert not [option for option in settings if option.encode() not in content]
