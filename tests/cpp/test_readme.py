"""The programs of cpp/README.md reject every part that is not OK; its other commands work."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from destseg_deploy.spec import Threshold
from tests.cpp.csharp import compile_, mono
from tests.cpp.hosts import compile_host, run_host
from tests.cpp.library import CPP, need_tools, run
from tests.tiny import write_packing_model

README = (CPP / "README.md").read_text("utf-8")


def snippets(language: str) -> list[str]:
    """Return the programs of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


THRESHOLDS = {
    "ok": Threshold(0.9, 0.9, "by hand"),
    "ng": Threshold(0.25, 0.25, "by hand"),
    "ng without a defect": Threshold(0.25, 0.99, "by hand"),
    "undecided": None,
}
"""Of an artifact that gives every frame of these tests a score, and a greatest pixel, of 0.78."""


@pytest.fixture
def artifact(library, tmp_path) -> Path:
    library.need("onnxruntime")
    return tmp_path / "cable-fp32.onnx"


def write_artifact(artifact: Path, case: str) -> None:
    spec = write_packing_model(artifact, (40, 24))
    replace(spec, threshold=THRESHOLDS[case]).write(artifact)


C_HOST = """
#include <destseg.h>
#include <stdio.h>
#include <stdlib.h>
static int rejected = 0;
static void reject(void) { ++rejected; }
int main(int argc, char **argv) {
  static uint8_t pixels[40 * 24 * 3];
  static float map[40 * 24];
  const size_t map_floats = 40 * 24;
  const int64_t stride = 0;
  const int32_t height = atoi(argv[argc - 1]), width = 24;
  pixels[0] = 200;
  %s
  printf("%%d\\n", rejected);
  return 0;
}
"""


def test_c_rejects_what_is_not_ok_or_was_not_scored(artifact, prefix, tmp_path):
    (snippet,) = snippets("c")
    program = compile_host(prefix, tmp_path / "host.c", C_HOST % snippet)
    assert run_host(program, 40) == ["1"], "no such file"
    for case in THRESHOLDS:
        write_artifact(artifact, case)
        assert run_host(program, 40) == [str(int(case != "ok"))], case
    assert run_host(program, 0) == ["1"], "a frame without pixels"


CPP_HOST = """
#include <destseg.hpp>
#include <cstdio>
#include <cstring>
static int rejected = 0, marked = 0;
static void reject() { ++rejected; }
static void mark(const destseg::Defect &) { ++marked; }
static void slow_down() { std::puts("slow_down"); }
static void stop_the_line() { std::puts("stop_the_line"); }
static std::vector<std::uint8_t> memory(900 * 2000 * 3);
static const std::uint8_t *const pixels = memory.data();

static void score(int height, int width, std::int64_t stride) { %s }
static void hand_over(destseg::Predictor &predictor, int height, int width) { %s
  std::puts("found");
}
static void score_part(destseg::Predictor &predictor, int height, int width, int stride) { %s }

int main(int, char **argv) {
  destseg::Options options;
  options.queue = 1;
  destseg::Predictor predictor("cable-fp32.onnx", options);
  if (std::strcmp(argv[1], "full") == 0) predictor.submit(destseg::bgr(pixels, 40, 24));
  if (std::strcmp(argv[1], "part") == 0) {
    std::fill(memory.begin(), memory.end(), 200);
    score_part(predictor, 900, 2000, 0);
  } else if (std::strcmp(argv[1], "whole") == 0) {
    memory[0] = 200;
    score(40, 24, 0);
  } else {
    return hand_over(predictor, 40, 24), 0;
  }
  std::printf("%%d %%d\\n", rejected, marked);
}
"""
REJECTED = {"ok": "0 0", "ng": "1 1", "ng without a defect": "1 0", "undecided": "1 0"}
"""How often a part is rejected, and how many of its defects are marked."""


def test_cpp_rejects_each_part_once_and_marks_defects_of_ng_ones(artifact, prefix, tmp_path):
    program = compile_host(prefix, tmp_path / "host.cpp", CPP_HOST % tuple(snippets("cpp")))
    for case, expected in REJECTED.items():
        write_artifact(artifact, case)
        assert run_host(program, "whole") == [expected], case
        assert run_host(program, "part") == [expected], case
    assert run_host(program, "room") == ["found"]
    assert run_host(program, "full") == ["slow_down"]


CSHARP_HOST = """
using System;
using Destseg;
internal static class Host
{
    private static int rejected, marked;
    private static void Reject() { ++rejected; }
    private static void Mark(Defect defect) { ++marked; }
    private static void Main(string[] arguments)
    {
        Environment.CurrentDirectory = arguments[0];
        int height = 40, width = 24;
        var pixels = new byte[40 * 24];
        for (int i = 0; i < pixels.Length; ++i) pixels[i] = 200;
%s
        Console.WriteLine(rejected + " " + marked);
    }
}
"""


def test_csharp_does_the_same(artifact, assembly, tmp_path):
    (snippet,) = snippets("csharp")
    (tmp_path / "Host.cs").write_text(CSHARP_HOST % snippet)
    program = assembly.parent / "Host.exe"
    compile_(program, f"-r:{assembly}", tmp_path / "Host.cs")
    for case, expected in REJECTED.items():
        write_artifact(artifact, case)
        done = mono(program, tmp_path)
        assert (done.stdout.split("\n")[0], done.returncode) == (expected, 0), case


@pytest.mark.parametrize(
    ("name", "folder", "compiler"),
    [
        ("mingw", "build-windows", "x86_64-w64-mingw32-g++-posix"),
        ("aarch64", "build-arm64", "aarch64-linux-gnu-g++"),
    ],
)
def test_the_commands_for_other_systems_configure(tmp_path, name, folder, compiler):
    """CMake's minimum does not know --toolchain, which needs 3.21."""
    (line,) = re.findall(rf"^cmake -S cpp -B {folder} .*$", README, re.M)
    assert f"#   {line}\n" in (CPP / f"cmake/{name}.cmake").read_text()
    assert "--toolchain" not in line
    need_tools()
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    (tmp_path / "cpp").symlink_to(CPP)
    run("bash", "-c", line, cwd=tmp_path)
    (chosen,) = (tmp_path / folder).rglob("CMakeCXXCompiler.cmake")
    assert compiler in chosen.read_text()
