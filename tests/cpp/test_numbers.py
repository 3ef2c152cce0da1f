"""Numbers of a spec are read alike with and without a standard library that reads floats."""

import math
import random
import shutil
import struct
import subprocess

import numpy as np
import pytest

from tests.cpp.library import CPP, need_tools, run

PROGRAM = """
#include <clocale>
#include <cstdio>
#include <iostream>
#include <string>
#include "json.hpp"
#include "text.hpp"
int main() {
  std::setlocale(LC_ALL, "de_DE.UTF-8");  // where there is such a locale, a comma is the point
  for (std::string line; std::getline(std::cin, line);)
    std::printf("%a\\n", destseg_core::parse_json(destseg_core::decode_utf8(line)).number);
}
"""

TEXTS = [
    "0.5", "-0.25", "1e-5", "1.0", "-0.0", "1e400", "-1e400", "1e-400", "5e-324", "2.5e-324",
    "2e-324", "1.7976931348623157e308", "1.7976931348623159e308", "0.1", "123456789012345.678e-20",
    "9007199254740993.0", "2.2250738585072011e-308", "0.00000000000000000000000000000000001e-300",
]  # fmt: skip


def texts_of_numbers() -> list[str]:
    """Return the edges, and random numbers with all of their digits."""
    bits = random.Random(0)
    doubles = [struct.unpack("<d", bits.randbytes(8))[0] for _ in range(2000)]
    finite = [value for value in doubles if math.isfinite(value)]
    return TEXTS + [repr(value) for value in finite if "." in repr(value)]


def assert_pythons(texts: list[str], printed: str) -> None:
    """Compare what the program printed with what Python reads, the sign of zero included."""
    found = printed.split()
    assert len(texts) == len(found) > 1500
    for text, shown in zip(texts, found, strict=True):
        assert float.fromhex(shown) == float(text), text
        assert shown.startswith("-") == text.startswith("-")


SHOWN = """
#include <cstdio>
#include <iostream>
#include <locale>
#include <string>
#include "text.hpp"
struct Comma : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\\3"; }
};
int main() {
  std::locale::global(std::locale(std::locale(), new Comma));
  for (std::string line; std::getline(std::cin, line);) {
    const double value = std::stod(line);
    std::printf("%s %s\\n", destseg_core::digits_of(value).c_str(),
                destseg_core::digits_of(static_cast<float>(value)).c_str());
  }
}
"""


def test_messages_show_numbers_with_a_point_and_all_their_digits(tmp_path):
    need_tools()
    (tmp_path / "shown.cpp").write_text(SHOWN)
    sources = [tmp_path / "shown.cpp", CPP / "src/text.cpp"]
    includes = [f"-I{CPP / 'src'}", f"-I{CPP / 'include'}"]
    run("c++", "-std=c++17", "-O0", *includes, *sources, "-o", tmp_path / "shown")
    values = [0.1, 1.5, 1 / 3, 1234567.875, 1e-5, 1e16, 2**53 + 1.0, -0.25, math.pi * 1e-20]
    text = "\n".join(map(repr, values)) + "\n"
    for value, line in zip(
        values, run(tmp_path / "shown", input=text).stdout.splitlines(), strict=True
    ):
        double, single = line.split()
        assert float(double) == value
        assert np.float32(single) == np.float32(value)
        assert len(double) <= len(repr(value))
        assert len(single) <= len(str(np.float32(value)))


def has_libcxx(folder) -> bool:
    """Tell whether clang, libc++-dev and libc++abi-dev are installed."""
    if shutil.which("clang++") is None:
        return False
    (folder / "probe.cpp").write_text("#include <vector>\nint main() { return 0; }\n")
    command = ["clang++", "-stdlib=libc++", folder / "probe.cpp", "-o", folder / "probe"]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize(
    "how",
    ["c++ -DDESTSEG_WITH_FROM_CHARS", "c++ -DDESTSEG_NO_FROM_CHARS", "clang++ -stdlib=libc++"],
)
def test_numbers_are_pythons(tmp_path, how):
    need_tools()
    compiler, flag = how.split()
    if compiler == "clang++" and not has_libcxx(tmp_path):
        pytest.skip("clang with libc++ is not installed")
    (tmp_path / "numbers.cpp").write_text(PROGRAM)
    sources = [tmp_path / "numbers.cpp", CPP / "src/json.cpp", CPP / "src/text.cpp"]
    flags = ["-std=c++17", "-O0", flag, f"-I{CPP / 'src'}", f"-I{CPP / 'include'}"]
    run(compiler, *flags, *sources, "-o", tmp_path / "numbers")
    texts = texts_of_numbers()
    assert_pythons(texts, run(tmp_path / "numbers", input="\n".join(texts) + "\n").stdout)
