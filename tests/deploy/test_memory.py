"""Too little memory is named as the cause, whichever library says so and in its own words."""

import errno

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.data.images import read_image
from destseg_deploy.errors import DestsegError, OutOfMemoryError
from destseg_deploy.memory import lacks_memory, refuse_shortage

ORT = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"
SEEN = [
    MemoryError(),
    RuntimeError(ORT),
    RuntimeError("Failed to allocate memory for requested buffer of size 4194304"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9437184 bytes"),
    RuntimeError("unable to mmap 140774828 bytes from file <a>: Cannot allocate memory (12)"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[CPU] Convolution node with name 'node_Conv_1029' can't allocate"),
    RuntimeError("OpenCV(4.13) (-4:Insufficient memory) Failed to allocate 100 bytes"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
OTHERS = [
    RuntimeError("Protobuf parsing failed"),
    FileNotFoundError(errno.ENOENT, "No such file", "out of memory.png"),
    ValueError("a bug"),
]


@pytest.mark.parametrize("error", SEEN, ids=str)
def test_a_shortage_is_recognised(error):
    assert lacks_memory(error)
    with pytest.raises(OutOfMemoryError, match=r"cable\.onnx: not enough memory \(.*\)\. Use"):
        refuse_shortage(error, "cable.onnx")


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_keep_their_own_message(error):
    assert not lacks_memory(error)
    refuse_shortage(error, "cable.onnx")


def test_it_is_one_of_ours_and_pythons():
    assert issubclass(OutOfMemoryError, DestsegError)
    assert issubclass(OutOfMemoryError, MemoryError)


def test_an_image_for_which_memory_lacks_is_not_called_damaged(tmp_path, monkeypatch):
    def fail(*given, **options):
        raise MemoryError

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(OutOfMemoryError, match=r"a\.png: not enough memory"):
        read_image(tmp_path / "a.png")
