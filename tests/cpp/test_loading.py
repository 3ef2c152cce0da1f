"""Back ends are loaded at run time: where they are looked for, which versions do, what is said."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.cpp.library import CPP, ROOT, run, wheel_folder
from tests.tiny import unpacked

KEPT = ROOT / ".venv/onnxruntimes"
"""Where ``make builders`` keeps wheels of ONNX Runtime, the oldest that is supported among them."""

HOST = """
import json, sys
import numpy as np
from pathlib import Path
from tests.cpp.library import Library, Refused
library, artifact, backend, images, answer = sys.argv[1:]
try:
    with Library(Path(library)).open(artifact, backend or None, threads=1) as handle:
        maps, _ = handle.scores(list(np.load(images)))
        np.save(answer, maps)
        print(json.dumps([handle.text("backend"), handle.text("backend.version")]))
except Refused as refused:
    print(json.dumps([refused.status, refused.text]))
"""


class Host:
    """A process of its own for each opening, because a back end is loaded once per process."""

    def __init__(self, library: Path, artifact: Path, folder: Path) -> None:
        self.library, self.artifact, self.folder = library, artifact, folder
        random = np.random.default_rng(0)
        self.images = random.integers(0, 256, (3, 40, 24, 3), dtype=np.uint8)
        np.save(folder / "images.npy", self.images)

    def open(self, backend: str = "onnxruntime", **places: Path | None) -> tuple[str, str]:
        """Open the artifact; return back end and version, or status and message."""
        names = {f"DESTSEG_{name}_LIBRARY": value for name, value in places.items()}
        kept = {k: v for k, v in os.environ.items() if not re.match("DESTSEG_.*_LIBRARY", k)}
        given = {name: str(value) for name, value in names.items() if value is not None}
        paths = [self.library, self.artifact, backend, self.folder / "images.npy", self.answer]
        done = run(sys.executable, "-c", HOST, *paths, env={**kept, **given, "PYTHONPATH": ROOT})
        first, second = json.loads(done.stdout)
        return first, second

    @property
    def answer(self) -> Path:
        """Where the maps go."""
        return self.folder / "maps.npy"

    def saw_the_images(self) -> bool:
        """Tell whether the packing model's maps hold the images, bit for bit."""
        return np.array_equal(unpacked(np.load(self.answer)), self.images)


@pytest.fixture
def host(library, packing, tmp_path) -> Host:
    return Host(Path(library.c._name), packing[0], tmp_path)


def wheel(version: str, platform: str = "x86_64") -> Path:
    found = sorted(KEPT.glob(f"onnxruntime-{version}-*{platform}*.whl"))
    if not found:
        pytest.skip(f"no wheel of ONNX Runtime {version} in {KEPT}; run make builders")
    return found[0]


def test_the_oldest_supported_onnxruntime_gives_the_same_bits(host, tmp_path):
    with zipfile.ZipFile(wheel("1.20.1")) as archive:
        archive.extract("onnxruntime/capi/libonnxruntime.so.1.20.1", tmp_path)
    found = host.open(ONNXRUNTIME=tmp_path / "onnxruntime/capi")
    assert found == ("onnxruntime", "1.20.1")
    assert host.saw_the_images()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_installed_wheel_is_opened_by_the_name_of_its_folder(host, backend):
    module = pytest.importorskip(backend)
    found = host.open(backend, **{backend.upper(): wheel_folder(backend)})
    assert found == (backend, module.__version__ if backend == "onnxruntime" else found[1])
    assert module.__version__.split("-")[0][:6] in found[1]
    assert host.saw_the_images()


def test_without_a_name_the_first_back_end_that_is_found_opens(host, tmp_path):
    pytest.importorskip("openvino")
    found = host.open("", ONNXRUNTIME=tmp_path, OPENVINO=wheel_folder("openvino"))
    assert found[0] == "openvino"


def test_the_librarys_own_folder_comes_first(host, tmp_path):
    pytest.importorskip("onnxruntime")
    (wanted,) = wheel_folder("onnxruntime").glob("libonnxruntime.so.*")
    own = tmp_path / "own"
    own.mkdir()
    host.library = shutil.copy(host.library, own)
    (own / wanted.name).symlink_to(wanted)
    assert host.open(ONNXRUNTIME=tmp_path / "nowhere")[0] == "onnxruntime"


def test_a_library_alone_says_what_was_searched_and_what_to_install(host, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    status, text = host.open("", ONNXRUNTIME=empty, OPENVINO=tmp_path / "none")
    assert status == "backend"
    own = host.library.resolve().parent
    assert f"{own} (no libonnxruntime.so*)" in text
    assert f"{empty} (no libonnxruntime.so*)" in text
    assert f"DESTSEG_OPENVINO_LIBRARY, which names; {tmp_path / 'none'} (" in text
    assert "Install ONNX Runtime 1.20 or newer" in text
    assert "Install OpenVINO" in text
    assert "\n" not in text


def test_the_systems_folders_come_last(host):
    status, text = host.open()
    if status == "onnxruntime":
        pytest.skip("this system has an ONNX Runtime of its own")
    assert "DESTSEG_ONNXRUNTIME_LIBRARY (not set); libonnxruntime.so.1 (" in text
    assert "cannot open shared object file" in text


FAKE = """
struct base { const void *(*api)(unsigned); const char *(*version)(void); };
static const void *api(unsigned version) { return 0; }
static const char *version(void) { return "%s"; }
static const struct base the = {api, version};
const struct base *OrtGetApiBase(void) { return &the; }
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (FAKE % "1.17.1", "version 1.17.1, expected 1.20 or newer"),
        (FAKE % "1.99.0", "version 1.99.0 has no API 20"),
        ("int unrelated;", "it has no OrtGetApiBase"),
        (None, "file too short"),
    ],
)
def test_a_library_that_will_not_do_is_named_with_its_reason(host, tmp_path, source, words):
    path = tmp_path / "libonnxruntime.so.1"
    path.write_bytes(b"")
    if source is not None:
        (tmp_path / "fake.c").write_text(source)
        run("cc", "-shared", "-fPIC", tmp_path / "fake.c", "-o", path)
    status, text = host.open(ONNXRUNTIME=path)
    assert status == "backend"
    assert words in text
    assert str(path) in text


def test_nothing_of_a_back_end_is_linked(host):
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    dynamic = run("readelf", "-d", host.library).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert needed
    assert not [name for name in needed if re.search("onnx|openvino|nvinfer|cuda", name)]


CHECK = """
#include <onnxruntime_c_api.h>
#include "onnxruntime_api.hpp"
#include <cstddef>
#define PLACE(name, place, result, arguments) \\
  static_assert(offsetof(OrtApi, name) == (place) * sizeof(void *), #name);
DESTSEG_ORT_CALLS(PLACE)
namespace own = destseg_core::onnxruntime;
static_assert(own::kFloat == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "");
static_assert(own::kUint8 == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, "");
static_assert(own::kInt8 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, "");
static_assert(own::kInt32 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, "");
static_assert(own::kLogErrors == ORT_LOGGING_LEVEL_ERROR, "");
static_assert(own::kArenaAllocator == OrtArenaAllocator, "");
static_assert(own::kDefaultMemory == OrtMemTypeDefault, "");
"""


def test_our_declarations_are_those_of_the_vendors_header(tmp_path):
    headers = Path(os.environ.get("DESTSEG_ORT_INCLUDE", ROOT / ".venv/include/onnxruntime"))
    if not (headers / "onnxruntime_c_api.h").is_file():
        pytest.skip("no header of ONNX Runtime; run cpp/get-onnxruntime-headers.sh")
    source = tmp_path / "check.cpp"
    source.write_text(CHECK)
    command = ["c++", "-std=c++17", "-fsyntax-only", "-I", headers, "-I", CPP / "src", source]
    run(*command)
    source.write_text(CHECK.replace("(place) *", "(place + 1) *"))  # the control
    assert subprocess.run(list(map(str, command)), capture_output=True).returncode != 0


def test_our_declarations_are_those_of_openvinos_headers(tmp_path):
    """By their numbers of arguments and the sizes of structs."""
    folder = wheel_folder("openvino")
    headers = folder.parent / "include" if folder else Path("none")
    if not (headers / "openvino/c/openvino.h").is_file():
        pytest.skip("no header of OpenVINO")
    source = tmp_path / "check.cpp"
    sizes = "".join(
        f"static_assert(sizeof(own::{ours}) == sizeof({theirs}));\n"
        for ours, theirs in (
            ("Shape", "ov_shape_t"),
            ("Dimension", "ov_dimension_t"),
            ("PartialShape", "ov_partial_shape_t"),
            ("Version", "ov_version_t"),
        )
    )
    source.write_text(
        "#include <openvino/c/openvino.h>\n#include <cstddef>\n#include <tuple>\n"
        '#include "openvino_api.hpp"\nnamespace own = destseg_core::openvino;\n'
        "template <typename F> struct Count;\n"
        "template <typename R, typename... A> struct Count<R (*)(A...)> {"
        " static constexpr std::size_t value = sizeof...(A); };\n"
        "template <typename R, typename... A> struct Count<R (*)(A..., ...)> {"
        " static constexpr std::size_t value = 100 + sizeof...(A); };\n"
        "#define SAME(name, result, arguments) static_assert(Count<decltype(&ov_##name)>::value == "
        "Count<decltype(own::Api::name)>::value, #name);\n"
        "DESTSEG_OPENVINO_CALLS(SAME)\n" + sizes
    )
    run("c++", "-std=c++17", "-fsyntax-only", "-I", headers, "-I", CPP / "src", source)
