"""load_library: whichever name the module has, and one line where there is none."""

import types

import pytest

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.trt import library as trt_library
from destseg_deploy.runtime.trt.library import INSTALL, MODULES, library_version, load_library


@pytest.fixture
def installed(monkeypatch):
    """What can be imported: name -> the module, or the error that importing it raises."""
    found: dict[str, object] = {}

    def import_module(name):
        if name not in found:
            raise ModuleNotFoundError(f"No module named {name!r}")
        if isinstance(found[name], BaseException):
            raise found[name]
        return found[name]

    monkeypatch.setattr(trt_library.importlib, "import_module", import_module)
    return found


def _module(version: str = "11.4.0.106") -> types.ModuleType:
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    return module


@pytest.mark.parametrize("builder", MODULES)
@pytest.mark.parametrize("which", [0, 1])
def test_either_name_is_found(builder, which, installed):
    installed[MODULES[builder][which]] = module = _module()
    assert load_library(builder) is module
    assert library_version(module) == "11.4.0.106"


def test_the_package_comes_before_the_bindings(installed):
    installed["tensorrt"], installed["tensorrt_bindings"] = _module("a"), _module("b")
    assert library_version(load_library("tensorrt")) == "a"


@pytest.mark.parametrize("builder", MODULES)
def test_what_is_not_installed_says_how_to_get_it(builder, installed):
    with pytest.raises(BackendError, match=r"No module named.*Install it: pip install") as refusal:
        load_library(builder)
    assert str(refusal.value).endswith(INSTALL[builder])


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libnvinfer.so.11: cannot open shared object file"),
        OSError("libcudart: wrong ELF class"),
        RuntimeError("this package is a\n   placeholder"),
    ],
)
def test_the_reason_is_what_broke_not_the_other_name(error, installed):
    installed["tensorrt"] = error
    with pytest.raises(BackendError) as refusal:
        load_library("tensorrt")
    assert " ".join(str(error).split()) in str(refusal.value)
    assert "No module named" not in str(refusal.value)
    installed["tensorrt_bindings"] = _module("10.3.0")
    assert library_version(load_library("tensorrt")) == "10.3.0"


def test_an_unknown_builder_is_refused():
    with pytest.raises(BackendError, match="builder 'trt': expected one of tensorrt, tensorrt-rtx"):
        load_library("trt")
