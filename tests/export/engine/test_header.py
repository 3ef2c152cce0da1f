"""read_header: what TensorRT-RTX writes, and nothing read into other files.

``test_rtx_builds`` holds it against real engines.
"""

import pytest

from destseg_export.engine.header import EngineHeader, read_header


def _header(version=(1, 7, 1, 116), mask=0xC, first=b"vtrt", second=b"vtrt") -> bytes:
    return first + bytes(20) + bytes(version) + second + mask.to_bytes(4, "little") + bytes(28)


def test_version_and_targets_are_read(tmp_path):
    path = tmp_path / "x.engine"
    path.write_bytes(_header() + b"more")
    header = read_header(path)
    assert header == EngineHeader("1.7.1.116", ("sm_86", "sm_89"))
    assert str(header) == "TensorRT-RTX 1.7.1.116 for sm_86, sm_89"
    path.write_bytes(_header(mask=0x7E))
    assert read_header(path).targets == ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")


def test_an_unknown_target_is_not_made_up(tmp_path):
    path = tmp_path / "x.engine"
    path.write_bytes(_header(mask=0x40))
    assert str(read_header(path)) == "TensorRT-RTX 1.7.1.116 for no known target"


@pytest.mark.parametrize(
    "content",
    [b"", b"vtrt", _header()[:63], _header(first=b"ftrt"), _header(second=b"ftrt"), b"\0" * 100],
)
def test_other_files_have_no_header(content, tmp_path):
    path = tmp_path / "x.engine"
    path.write_bytes(content)
    assert read_header(path) is None
