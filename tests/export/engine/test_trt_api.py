"""Every name and method of TensorRT's that we use is there, in each release that we support.

The bindings' wheels need only a few C functions of TensorRT's libraries to be imported. Libraries
that have those and nothing else let Python list what each release offers; a call would crash. So no
GPU and no TensorRT are needed, only the wheels (1.3 MB each): ``make builders``.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.trt.library import load_library
from tests.export.engine.trt_uses import (
    BY_NAME,
    HOLDERS,
    MODULE,
    OVERRIDDEN,
    ROOT,
    RTX_ONLY,
    all_uses,
    read_uses,
    sources,
    speaks_to_tensorrt,
    unlisted,
)

WHEELS = Path(os.environ.get("DESTSEG_BINDINGS", Path(sys.prefix, "bindings")))
RELEASES = {
    "10.3": "tensorrt_cu12_bindings-10.3.0-*.whl",
    "10.16": "tensorrt_cu13_bindings-10.16.1.11-*.whl",
    "11.4": "tensorrt_cu13_bindings-11.4.0.106-*.whl",
}
LIST = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
kinds = {name: getattr(module, name) for name in dir(module)}
found = {name: dir(kind) for name, kind in kinds.items() if isinstance(kind, type)}
print(json.dumps({"module": sorted(kinds), "version": module.__version__, **found}))
"""
SYMBOLS = {
    "libnvinfer": (
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL", "getBuilderPluginRegistry", "getPluginRegistry",
    ),
    "libnvinfer_plugin": ("initLibNvInferPlugins",),
    "libnvonnxparser": (
        "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}  # fmt: skip
"""What the bindings want of TensorRT's libraries when they are imported."""

Offer = dict[str, list[str]]
"""Class -> its names; ``module``: the names of the module itself."""


def _stub_libraries(folder: Path, major: str) -> None:
    """Compile libraries that can be linked with, and do nothing."""
    folder.mkdir()
    for library, symbols in SYMBOLS.items():
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols))
        name = f"{library}.so.{major}"
        command = ["gcc", "-shared", "-fPIC", source, f"-Wl,-soname,{name}", "-o", folder / name]
        subprocess.run([str(word) for word in command], check=True, timeout=60)


def _list(module: str, **environment: str) -> Offer:
    done = subprocess.run(
        [sys.executable, "-c", LIST, module],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=[*RELEASES, "rtx"])
def offer(request, tmp_path_factory) -> Offer:
    """What one release offers."""
    if request.param == "rtx":
        try:
            return _list(load_library("tensorrt-rtx").__name__)
        except BackendError as error:
            pytest.skip(f"{error} (make builders)")
    wheels = sorted(WHEELS.glob(RELEASES[request.param]))
    if not wheels:
        pytest.skip(f"no {RELEASES[request.param]} in {WHEELS}: make builders")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile stub libraries with")
    folder = tmp_path_factory.mktemp("bindings")
    zipfile.ZipFile(wheels[0]).extractall(folder)
    _stub_libraries(folder / "stubs", request.param.split(".")[0])
    paths = {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder / "stubs")}
    found = _list("tensorrt_bindings", **paths)
    assert str(found["version"]).startswith(f"{request.param}.")
    return found


def _missing(offer: Offer, uses: set[tuple[str, str]]) -> list[str]:
    """Return which uses a release does not offer."""
    missing = []
    for kind, name in sorted(uses):
        names = offer.get(kind.removesuffix("?"))
        if names is None and kind.endswith("?"):
            continue
        if names is None or name not in names:
            missing.append(f"{kind}.{name}")
    return missing


def _is_rtx(offer: Offer) -> bool:
    return str(offer["version"]).startswith("1.")


def test_every_name_we_use_is_there(offer):
    needed = all_uses().needed
    assert needed > RTX_ONLY
    assert _missing(offer, needed if _is_rtx(offer) else needed - RTX_ONLY) == []


def test_what_only_rtx_has_is_only_there(offer):
    sure = {(kind.removesuffix("?"), name) for kind, name in RTX_ONLY}
    assert len(_missing(offer, sure)) == (0 if _is_rtx(offer) else len(sure))


def test_what_we_override_is_called(offer):
    for kind, methods in OVERRIDDEN.items():
        assert set(methods) <= set(offer[kind])


def test_the_check_would_see_what_is_gone(offer):
    """All these were in TensorRT 8; none is in 11."""
    old = {("ICudaEngine", "get_binding_index"), ("Builder", "max_batch_size"), (MODULE, "Old")}
    assert len(_missing(offer, old)) == 3


def test_what_we_probe_for_is_somewhere():
    """A probe for what no release has would be dead, or a slip of the pen."""
    assert all_uses().probed <= {
        (MODULE, "ComputeCapability"),  # RTX
        (MODULE, "CudaGraphStrategy"),  # RTX
        ("ICudaEngine", "create_runtime_config"),  # from 10.16, RTX
        ("SerializationFlag", "INCLUDE_REFIT"),  # from 10.16, RTX
    }


def test_probes_are_answered_as_the_code_expects(offer):
    version = str(offer["version"])
    rtx, old = _is_rtx(offer), version.startswith("10.3")
    assert ("ComputeCapability" in offer["module"]) == rtx
    assert ("CudaGraphStrategy" in offer["module"]) == rtx
    assert ("create_runtime_config" in offer["ICudaEngine"]) == (not old)
    assert ("INCLUDE_REFIT" in offer["SerializationFlag"]) == (not old)


# --- that the list of uses is whole


@pytest.mark.parametrize("name", HOLDERS)
def test_no_object_is_left_out(name):
    assert unlisted((ROOT / name).read_text(), HOLDERS[name]) == []


def test_no_file_is_left_out():
    speaking = {
        p.relative_to(ROOT).as_posix() for p in sources() if speaks_to_tensorrt(p.read_text())
    }
    assert speaking <= set(HOLDERS)
    assert len(speaking) >= 5


def test_the_list_holds_what_everybody_can_see():
    uses = all_uses()
    assert uses.needed >= {
        (MODULE, "Builder"), (MODULE, "OnnxParser"), (MODULE, "Runtime"), (MODULE, "Refitter"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"), ("BuilderFlag", "TF32"),
        ("BuilderFlag", "REFIT"), ("MemoryPoolType", "WORKSPACE"), ("DataType", "UINT8"),
        ("Builder", "build_serialized_network"), ("OnnxParser", "parse_from_file"),
        ("IBuilderConfig", "progress_monitor"), ("IBuilderConfig", "set_timing_cache"),
        ("IExecutionContext", "execute_async_v3"), ("Runtime", "deserialize_cuda_engine"),
        ("INetworkDefinition", "mark_weights_refittable"), ("EngineInspector",
         "get_engine_information"), ("Refitter", "refit_cuda_engine"), *BY_NAME,
    }  # fmt: skip
    assert uses.defined >= {(kind, m) for kind, methods in OVERRIDDEN.items() for m in methods}


def test_uses_are_read_from_a_source():
    text = """
def build(library, builder):
    builder.create_network(1 << int(library.Flag.TYPED))
    if hasattr(library, "New"):
        library.New()
    thing = builder.make_thing()
    low, top = self._must(builder.limits())
class Monitor(library.IMonitor):
    def tick(self): ...
"""
    uses = read_uses(text, {"builder": "Builder"})
    assert uses.needed == {
        ("Builder", "create_network"), ("Builder", "make_thing"), ("Builder", "limits"),
        (MODULE, "Flag"), ("Flag", "TYPED"), (MODULE, "IMonitor"),
    }  # fmt: skip
    assert uses.probed == {(MODULE, "New")}
    assert uses.defined == {("IMonitor", "tick")}
    assert unlisted(text, {"builder": "Builder"}) == ["thing", "top"]
