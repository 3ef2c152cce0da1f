"""A device whose kernels are compiled for the host."""

import pytest

from tests.fakes.device import FakeDevice
from tests.fakes.host_kernels import HostCompiler


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def device(folder):
    opened = FakeDevice(compiler=HostCompiler(folder))
    yield opened
    opened.close()
