"""Every error this project raises on purpose.

::

    DestsegError
    ├── DataError            a folder, an image or a mask that is missing, unreadable or misplaced
    ├── ShapeError           an array of the wrong shape, dtype or range
    ├── SpecError            a ModelSpec that is missing, unreadable or belongs to another file
    ├── WeightsError         a checkpoint or teacher that is missing, truncated or of another model
    ├── BackendError         a runtime or device that was asked for and is not there
    ├── MetricError          labels or maps from which a metric cannot be computed
    ├── TrainingError        training that cannot start or must not go on
    └── ExportError          an artifact that could not be made
        └── ParityError      an artifact whose answers differ from PyTorch's beyond the budget

A message says what was wrong and its value, what was expected, and what to do. The commands print
it as one line and exit with status 1.
"""

from __future__ import annotations


class DestsegError(Exception):
    """Base of all errors raised on purpose by destseg-deploy."""


class DataError(DestsegError):
    """A folder, an image or a mask is missing, unreadable or misplaced."""


class ShapeError(DestsegError, ValueError):
    """An array has the wrong shape, dtype or range."""


class SpecError(DestsegError):
    """A ModelSpec is missing, unreadable, or belongs to another file."""


class WeightsError(DestsegError):
    """A checkpoint or teacher file is missing, truncated, or of another model."""


class BackendError(DestsegError):
    """A runtime or a device was asked for and is not there."""


class MetricError(DestsegError, ValueError):
    """A metric cannot be computed from these labels or maps."""


class TrainingError(DestsegError):
    """Training cannot start, or must not go on."""


class ExportError(DestsegError):
    """An artifact could not be made."""


class ParityError(ExportError):
    """An artifact's answers differ from PyTorch's beyond the stated budget."""
