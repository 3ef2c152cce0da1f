"""The C++ library looks up no host and leaves no identity in the home folder."""

import sys

import pytest

from tests.watched import Watched

OPEN = """
import sys
from pathlib import Path
import numpy as np
from tests.cpp.library import Library
library, path, backend = sys.argv[1:]
with Library(Path(library)).open(path, backend, threads=1) as handle:
    handle.scores([np.zeros((64, 64, 3), np.uint8)])
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_library_asks_nothing_of_the_network(prefix, library, onnx_artifact, backend, tmp_path):
    """Without the switch, ONNX Runtime 1.32 leaves a device identity in the home folder."""
    library.need(backend)
    (path,) = prefix.glob("lib*/**/libdestseg.so")
    (tmp_path / "open.py").write_text(OPEN)
    watched = Watched(tmp_path)
    done = watched.run(f"{sys.executable} {tmp_path}/open.py {path} {onnx_artifact} {backend}")
    assert done.returncode == 0, done.stderr
    assert watched.seen() == []
