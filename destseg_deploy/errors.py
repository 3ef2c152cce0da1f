"""Every error this project raises on purpose; some modules have a kind of their own.

A message says what was wrong and its value, what was expected, and what to do. The commands print
it as one line and exit with status 1. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class DestsegError(Exception):
    """Base of all errors raised on purpose by destseg-deploy."""


class DataError(DestsegError):
    """A folder, an image or a mask is missing, unreadable or misplaced."""


class DataWarning(UserWarning):
    """An image or a mask was read, and may not mean what its owner thinks."""


class ShapeError(DestsegError, ValueError):
    """An array has the wrong shape, dtype or range."""


class SpecError(DestsegError):
    """A ModelSpec is missing, unreadable, or belongs to another file."""


class WeightsError(DestsegError):
    """A checkpoint or teacher file is missing, truncated, or of another model."""


class BackendError(DestsegError):
    """A runtime or a device was asked for and is not there."""


class OutOfMemoryError(DestsegError, MemoryError):
    """An image, a batch or a model needs more memory than there is."""


class MetricError(DestsegError, ValueError):
    """A metric cannot be computed from these labels or maps."""


class TrainingError(DestsegError):
    """Training cannot start, or must not go on."""


class JobError(DestsegError):
    """Some of several jobs failed on a cluster; the others are finished."""


class ExportError(DestsegError):
    """An artifact could not be made."""


class OutputError(DestsegError):
    """An output must not or cannot be written: not ours, in use, a wrong name, or no room."""


class ParityError(ExportError):
    """An artifact's answers differ from PyTorch's beyond the stated budget."""
