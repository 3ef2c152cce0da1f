"""Tasks on the sample category for every compared system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from destseg_bench.systems.system import Task


@pytest.fixture(scope="session")
def make_task(category: Path) -> Callable[..., Task]:
    """Return a function that makes tasks of 6 normal images; quick, with random weights."""

    def make(**options: Any) -> Task:
        return Task.of_category(category, **{"schedule": "quick", "pretrained": False, **options})

    return make


@pytest.fixture(scope="session")
def task(make_task: Callable[..., Task]) -> Task:
    """The quick schedule with random weights."""
    return make_task()
