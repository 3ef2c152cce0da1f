"""TensorBoard's curves and pictures of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from destseg_deploy.errors import BackendError, TrainingError
from destseg_deploy.training.batches import Batch
from destseg_deploy.training.checkpointing import RunState
from destseg_deploy.training.recipe import Phase

PICTURE_EVERY = 200
"""Steps between two pictures."""
PICTURES = 6
"""Samples of a batch that a picture shows at most."""


class TensorBoardLog:
    """Writes losses, learning rates, speed and sample pictures for TensorBoard. A context."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Open the log.

        Args:
            folder: The folder that TensorBoard reads.
            first_step: Steps done before. Entries of an earlier run after this step are hidden.

        Raises:
            BackendError: If TensorBoard is not installed.
            TrainingError: If the folder cannot be written; so do the other methods.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BackendError(
                "TensorBoard is not installed. Install it with pip install "
                "'destseg-deploy[tensorboard]', or leave out --tensorboard."
            ) from error
        self._folder = folder
        with self._named():
            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        self._written = first_step
        self._pictured: int | None = None
        self._time = time.perf_counter()

    def __enter__(self) -> TensorBoardLog:
        """Return the log."""
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Write what is pending and close the log. The error that ends the training comes first."""
        with suppress(TrainingError) if kind else nullcontext(), self._named():
            self._writer.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the log in an error of the system; TensorBoard's own names no file."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self._folder}: TensorBoard's log cannot be written ({error.strerror or error}). "
                "What was saved of the training is intact. Make room or leave out --tensorboard, "
                "and repeat the command."
            ) from error

    def write_steps(self, phase: Phase, state: RunState, rates: list[float]) -> None:
        """Write the losses since the last call, the learning rates and the speed."""
        with self._named():
            self._write_steps(phase, state, rates)

    def _write_steps(self, phase: Phase, state: RunState, rates: list[float]) -> None:
        for step in range(self._written, state.step):
            self._writer.add_scalar(f"loss/{phase.name}", float(state.losses[step]), step + 1)
        names = ("student",) if phase.name == "student" else ("res", "head")
        for name, rate in zip(names, rates, strict=True):
            self._writer.add_scalar(f"rate/{name}", rate, state.step)
        now = time.perf_counter()
        speed = (state.step - self._written) / (now - self._time)
        self._writer.add_scalar("speed/steps_per_second", speed, state.step)
        self._written, self._time = state.step, now
        # The state is saved after this call. If the run is killed then, it continues from that
        # state and does not write these steps again, so they must be on the disk now.
        self._writer.flush()

    def wants_pictures(self, step: int, last: bool) -> bool:
        """Tell whether to write pictures: at first, every 200 steps, and at the end of a phase."""
        return last or self._pictured is None or step - self._pictured >= PICTURE_EVERY

    def write_pictures(self, step: int, batch: Batch, segmentation: Tensor) -> None:
        """Write one row per sample: corrupted image, clean image, mask, segmentation."""
        image, clean, mask = (part[:PICTURES].float().cpu() for part in batch)
        size = image.shape[-2:]
        found = functional.interpolate(segmentation[:PICTURES].float().cpu(), size=list(size))
        grey = [part.expand(-1, 3, -1, -1) for part in (mask, found)]
        columns = [image / 255, clean / 255, *grey]
        rows = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
        with self._named():
            self._writer.add_image("samples", rows.clamp(0, 1), step)
        self._pictured = step
