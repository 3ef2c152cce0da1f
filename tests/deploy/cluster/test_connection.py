"""Connecting, with a Ray that refuses."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pytest

from destseg_deploy.cluster import connection
from destseg_deploy.cluster.connection import TRIES, connected
from destseg_deploy.errors import BackendError
from tests.fakes.ray_tasks import FakeRay

AT = "ray://127.0.0.1:10001"
FORKED = "Traceback:\nRuntimeError: Starting Ray client server failed. See ray_client.err."


class Refusing(FakeRay):
    """Refuses the first connections with the words given."""

    def __init__(self, *refusals: str) -> None:
        super().__init__()
        self.refusals, self.asked_for = list(refusals), list[str]()

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str, **options: Any) -> None:
        self.asked_for.append(address)
        if self.refusals:
            raise ConnectionAbortedError(self.refusals.pop(0))

    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize(
    ("refusals", "asked", "refused"),
    [
        ((), 1, False),
        ((FORKED,), 2, False),
        ((FORKED,) * TRIES, TRIES, True),
        (("Version mismatch",), 1, True),
    ],
)
def test_only_a_server_that_did_not_start_is_asked_again(monkeypatch, refusals, asked, refused):
    ray = Refusing(*refusals)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(connection, "_reach", lambda *where: None)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, "0")
    wanted = pytest.raises(BackendError, match="cannot be used") if refused else None
    with wanted or contextlib.nullcontext(), connected(AT) as given:
        assert given is ray
    assert ray.asked_for == [AT] * asked
