"""What several rooms' tests share."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests, or skip."""
    with chromium() as driver:
        yield driver
