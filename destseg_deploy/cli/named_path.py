"""Paths on a command line."""

from __future__ import annotations

from typing import Any

import click


class NamedPath(click.Path):
    """A path that is not empty; click reads an empty argument as the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or refuse it as a usage error."""
        if isinstance(value, str) and not value.strip():
            self.fail("an empty name; '.' is the current folder.", param, ctx)
        return super().convert(value, param, ctx)
