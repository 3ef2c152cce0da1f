"""A small file asks for no more memory than a checkpoint, in whatever way it is written."""

import io
import pickle
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from destseg_deploy.errors import OutOfMemoryError, WeightsError
from destseg_deploy.models import limits
from destseg_deploy.models.weights import read_state_dict

STATE = {"a": torch.zeros(5, 3), "b": torch.tensor(7), "c": torch.ones(3, 3).half()}
FIVE_GB = b"\x8a\x05\x00\xf2\x05*\x01"  # LONG1 5,000,000,000


def call(name: bytes, argument: bytes = FIVE_GB) -> bytes:
    """A pickle that calls a function of a module with one number."""
    return b"\x80\x02c" + name + b"\n" + argument + b"\x85R."


def zipped(content: bytes, data: bytes = b"", times: int = 0) -> bytes:
    """A file as torch writes it now, its data repeated."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(times):
                entry.write(data)
    return file.getvalue()


REFUSED = {
    "a bytearray": call(b"builtins\nbytearray"),
    "a storage": call(b"torch\nFloatStorage"),
    "a tensor": call(b"torch\nTensor"),
    "a storage in a zip file": zipped(call(b"torch\nFloatStorage")),
    "a bytearray in a zip file": zipped(call(b"builtins\nbytearray")),
    "a number kept and used again": b"\x80\x02J\x00\x00\x00\x01q\x000ctorch\nFloatStorage\n"
    b"h\x00\x85R.",
    "a number doubled": b"\x80\x02J\x00\x00\x00\x012ctorch\nFloatStorage\n\x85R.",
    "a long text": b"\x80\x02X\xff\xff\xff\xf0abc.",
    "bytes that are not there": b"\x80\x04\x8e\x00\xf2\x05*\x01\x00\x00\x00abc.",
    "a zip bomb": zipped(b"\x80\x02}.", bytes(1 << 20), 513),
    "a bomb of the pickle": zipped(b"\x80\x02" + b"N" * (limits.MOST_PICKLE + 1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_asks_for_gigabytes_is_refused_before_it_is_opened(name, tmp_path, monkeypatch):
    """A pickle of 45 bytes took 5 GB."""
    path = tmp_path / "cable.pth"
    path.write_bytes(REFUSED[name])
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(torch, "load", lambda *given, **options: pytest.fail("opened"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"cable\.pth: ") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_state_dict_of_any_torch_is_read(new, kind, tmp_path):
    """Control: the checks let the files of torch through."""
    path = tmp_path / "cable.pth"
    torch.save(kind(STATE), path, _use_new_zipfile_serialization=new)
    found = read_state_dict(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_too_large_is_refused_by_its_size(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"cable{suffix}"
    with path.open("wb") as file:
        file.truncate(limits.MOST_BYTES + 1)  # sparse: it takes no place
    with pytest.raises(
        WeightsError, match="536870913 bytes, expected at most 536870912; a DeSTSeg"
    ):
        read_state_dict(path)


def test_no_code_runs_in_the_check(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "cable.pth"
    path.write_bytes(pickle.dumps({"a": Evil()}, 2))
    with pytest.raises(WeightsError, match="refused"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


ONNX = b"\x08\x08\x12\x07pytorch\x1a\x01"
KINDS = [
    ("cable-fp32.onnx", ONNX, "an ONNX model, .*the checkpoint that it was made from"),
    ("cable.pckl", ONNX, "an ONNX model"),
    ("cable.safetensors", ONNX, "an ONNX model"),
    ("cable.engine", b"ftrt\0\0\0\0", "a TensorRT engine"),
    ("cable.json", b'{"kind": "checkpoint"}', "JSON, .*the file that it lies beside"),
    ("cable.json", b'\xef\xbb\xbf{"kind": "checkpoint"}', "JSON"),
    ("000.png", b"\x89PNG\r\n\x1a\n", "a picture"),
    ("resnet18.pth", b"<!DOCTYPE html>", "a web page or XML, .*Download"),
    ("resnet18.pth", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ("resnet18.pth", b"\x1f\x8b\x08", "gzip.*Unpack it"),
    ("cable.safetensors", b"PK\x03\x04", r"a pickle of PyTorch.*Rename it to \.pth"),
]


@pytest.mark.parametrize("name", ["a.pth", "a.pckl", "a.safetensors"])
def test_an_empty_file_is_called_so(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=rf"{name}: an empty file, expected a checkpoint"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(("name", "content", "words"), KINDS, ids=range(len(KINDS)))
def test_what_is_passed_by_mistake_is_called_by_its_name(name, content, words, tmp_path):
    """An ONNX file was refused because "opening it could run its code"."""
    (tmp_path / name).write_bytes(content + bytes(100))
    with pytest.raises(WeightsError, match=rf"{name}: .*{words}") as error:
        read_state_dict(tmp_path / name)
    assert "run its code" not in str(error.value)


@pytest.mark.parametrize("name", ["cable.safetensors", "CABLE.SAFETENSORS", "cable.pth"])
def test_safetensors_are_known_by_their_content(name, tmp_path):
    save_file({"a": STATE["a"]}, tmp_path / name)
    assert torch.equal(read_state_dict(tmp_path / name)["a"], STATE["a"])


def test_a_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
    def fail(*given, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 MB")

    path = tmp_path / "cable.pth"
    torch.save(STATE, path)
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OutOfMemoryError, match=r"cable\.pth: not enough memory"):
        read_state_dict(path)


HUNGRY = """
import sys
import click
from destseg_deploy.cli.console import OneLineErrors

@click.command(cls=OneLineErrors)
@click.argument("kind")
def hungry(kind):
    if kind == "numpy":
        import numpy as np
        np.zeros(1 << 50, np.uint8)
    if kind == "python":
        bytearray(1 << 50)
    if kind == "torch":
        import torch
        torch.zeros(1 << 50)
    raise ValueError("a bug")

hungry()
"""


@pytest.mark.parametrize("kind", ["numpy", "python", "torch"])
def test_a_command_without_memory_ends_with_one_line(kind):
    done = subprocess.run([sys.executable, "-c", HUNGRY, kind], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: not enough memory (")
    assert done.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    """Control of the line about memory."""
    done = subprocess.run([sys.executable, "-c", HUNGRY, "bug"], capture_output=True, text=True)
    assert "ValueError: a bug" in done.stderr
    assert "Traceback" in done.stderr
