"""What a run leaves to look at: every step's loss, and TensorBoard's scalars and pictures."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from destseg_deploy.atomic import replacing
from destseg_deploy.data.synthesis_torch import Batch
from destseg_deploy.errors import BackendError
from destseg_deploy.recipe import Recipe
from destseg_deploy.training.resume import RunState
from destseg_deploy.training.schedule import Phase, phases

PICTURE_EVERY = 200
PICTURES = 6


class Journal:
    """Writes scalars and sample pictures for TensorBoard."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Open the log; entries of a run before, those after ``first_step`` steps, are hidden.

        Raises:
            BackendError: If TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BackendError(
                "TensorBoard is not installed. Install it with pip install "
                "'destseg-deploy[tensorboard]', or leave out --tensorboard."
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        self._written = first_step
        self._pictured: int | None = None
        self._time = time.perf_counter()

    def write_steps(self, phase: Phase, state: RunState, rates: list[float]) -> None:
        """Write the losses since the last call, the learning rates and the speed."""
        for step in range(self._written, state.step):
            self._writer.add_scalar(f"loss/{phase.name}", float(state.losses[step]), step + 1)
        names = ("student",) if phase.name == "student" else ("res", "head")
        for name, rate in zip(names, rates, strict=True):
            self._writer.add_scalar(f"rate/{name}", rate, state.step)
        now = time.perf_counter()
        speed = (state.step - self._written) / (now - self._time)
        self._writer.add_scalar("speed/steps_per_second", speed, state.step)
        self._written, self._time = state.step, now
        self._writer.flush()  # a run that is killed goes on from here, so this must be there

    def wants_pictures(self, step: int, last: bool) -> bool:
        """Tell whether it is time for pictures: at first, each 200 steps, and as a phase ends."""
        return last or self._pictured is None or step - self._pictured >= PICTURE_EVERY

    def write_pictures(self, step: int, batch: Batch, segmentation: Tensor) -> None:
        """Write rows of corrupted image, clean image, mask and segmentation."""
        image, clean, mask = (part[:PICTURES].float().cpu() for part in batch)
        size = image.shape[-2:]
        found = functional.interpolate(segmentation[:PICTURES].float().cpu(), size=list(size))
        grey = [part.expand(-1, 3, -1, -1) for part in (mask, found)]
        columns = [image / 255, clean / 255, *grey]
        rows = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
        self._writer.add_image("samples", rows.clamp(0, 1), step)
        self._pictured = step

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


@contextmanager
def open_journal(folder: Path | None, first_step: int) -> Iterator[Journal | None]:
    """Open a journal and close it, or give None for no folder."""
    journal = None if folder is None else Journal(folder, first_step)
    try:
        yield journal
    finally:
        if journal is not None:
            journal.close()


def losses_path(checkpoint: Path) -> Path:
    """Return the table of losses beside a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.stem}-losses.csv")


def write_losses(path: Path, recipe: Recipe, losses: NDArray[np.float32]) -> None:
    """Write a table with every step's loss."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "phase", "loss"))
        for phase in phases(recipe):
            for step in range(phase.start, phase.stop):
                writer.writerow((step + 1, phase.name, f"{losses[step]:.6g}"))
