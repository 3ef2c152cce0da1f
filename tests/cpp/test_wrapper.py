"""The C++ wrapper: what is moved closes what it replaces first; paths of every type."""

import shutil

import pytest

from tests.cpp.hosts import compile_host, run_host
from tests.cpp.library import CPP, run
from tests.cpp.test_windows import COMPILER
from tests.tiny import write_packing_model

MOVING = """
#include <cstdio>
#include <destseg.hpp>
#include <utility>

struct Watch {  // what a host's log holds; it looks at the handle when it is destroyed
  static destseg_predictor *watched;
  void operator()(std::int32_t, const std::string &) const {}
  Watch() = default;
  Watch(const Watch &) = default;
  ~Watch() {
    destseg_info info{};
    info.struct_size = sizeof info;
    if (watched != nullptr)
      std::printf("closed %d\\n", destseg_get_info(watched, &info) == DESTSEG_ERROR_BACKEND);
  }
};
destseg_predictor *Watch::watched = nullptr;

int main(int, char **argv) {
  destseg::Options options;
  options.log = Watch();
  destseg::Predictor predictor(argv[1], options);
  options.log = nullptr;
  Watch::watched = predictor.handle();
  predictor = destseg::Predictor(argv[2]);
  Watch::watched = nullptr;
  destseg::Predictor moved(std::move(predictor));
  std::printf("%d %d\\n", moved.info().height, predictor.handle() == nullptr);
}
"""


def test_a_predictor_that_is_assigned_closes_the_old_one_before_its_log(library, prefix, tmp_path):
    library.need("onnxruntime")
    write_packing_model(tmp_path / "a.onnx", (8, 6))
    write_packing_model(tmp_path / "b.onnx", (10, 6))
    program = compile_host(prefix, tmp_path / "moving.cpp", MOVING)
    assert run_host(program, "a.onnx", "b.onnx") == ["closed 1", "10 1"]


RELOADING = """
#include <destseg.hpp>
#include <cstdio>
int main() {
  destseg::Predictor predictor(L"a.onnx");
  predictor.reload("b.onnx");
  predictor.reload(std::string("a.onnx"));
  predictor.reload(L"b.onnx");
  predictor.reload(std::wstring(L"a.onnx"));
  predictor.reload(std::filesystem::path(L"b.onnx"));
  std::printf("%d\\n", predictor.info().height);
  const std::vector<float> map(predictor.map_pixels());
  try {
    predictor.map_at_frame(map, 2147483647, 2147483647);
  } catch (const destseg::ShapeError &error) {
    std::puts(error.what());
  }
}
"""


def test_a_reload_takes_every_path_and_an_impossible_size_is_named(library, prefix, tmp_path):
    library.need("onnxruntime")
    write_packing_model(tmp_path / "a.onnx", (8, 6))
    write_packing_model(tmp_path / "b.onnx", (10, 6))
    program = compile_host(prefix, tmp_path / "reloading.cpp", RELOADING)
    height, refused = run_host(program)
    assert height == "10"
    assert refused == "frame: 2147483647x2147483647 pixels, expected 1 to 65536 on each side."


def test_windows_where_paths_are_wide_takes_them_too(tmp_path):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed; apt-get install g++-mingw-w64-x86-64")
    (tmp_path / "host.cpp").write_text(RELOADING)
    include = ["-I", CPP / "include"]
    run(COMPILER, "-std=c++17", "-fsyntax-only", *include, tmp_path / "host.cpp")
