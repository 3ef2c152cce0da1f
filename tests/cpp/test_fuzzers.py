"""The fuzzers fit the library's header; ``cpp/test/fuzz/run.sh``, which runs them, needs clang."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cpp.library import CPP

PROVIDER = """
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
struct FuzzedDataProvider {
  FuzzedDataProvider(const std::uint8_t *, std::size_t);
  bool ConsumeBool();
  std::string ConsumeRandomLengthString(std::size_t);
  void *ConsumeData(void *, std::size_t);
  template <typename T> T ConsumeIntegral();
  template <typename T> T ConsumeIntegralInRange(T, T);
  template <typename T> T ConsumeFloatingPoint();
  template <typename T> T ConsumeFloatingPointInRange(T, T);
  template <typename T, std::size_t N> T PickValueInArray(const T (&)[N]);
};
"""
"""What the fuzzers use of clang's header, for compilers that do not have it."""


def compiled(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "fuzzer").mkdir(exist_ok=True)
    (folder / "fuzzer/FuzzedDataProvider.h").write_text(PROVIDER)
    places = (folder, *(CPP / name for name in ("include", "src", "example")))
    flags = ["-fsyntax-only", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
    command = ["c++", *flags, *(f"-I{place}" for place in places), source]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", ["spec", "infer", "image"])
def test_it_compiles(name, tmp_path):
    if shutil.which("c++") is None:
        pytest.skip("c++ is not installed; apt-get install g++")
    source = CPP / f"test/fuzz/fuzz_{name}.cpp"
    done = compiled(source, tmp_path)
    assert done.returncode == 0, done.stderr
    wrong = tmp_path / source.name
    wrong.write_text(source.read_text() + "\nstatic_assert(sizeof(destseg_no_such_thing) > 0);\n")
    assert compiled(wrong, tmp_path).returncode != 0


def test_every_fuzzer_is_one_of_them():
    found = {path.stem for path in (CPP / "test/fuzz").glob("fuzz_*.cpp")}
    assert found == {"fuzz_spec", "fuzz_infer", "fuzz_image"}
