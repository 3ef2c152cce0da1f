"""Several runs: in this process one after the other, or on a Ray cluster one for each worker.

Both end with the same bytes on the same kind of machine, because a run computes with the same
number of threads in both, and reads the same files at the same paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from destseg_deploy.cluster.connection import connected
from destseg_deploy.cluster.jobs import Bar, Notify, Seat, run_jobs
from destseg_deploy.cluster.place import Place
from destseg_deploy.data.datasets import DataSet
from destseg_deploy.spec import ModelSpec
from destseg_deploy.training import run
from destseg_deploy.training.recipe import Recipe, TrainingOptions
from destseg_deploy.training.texture_bank import TextureBank
from destseg_deploy.training.threads import computing_with, pick_threads


@dataclass(frozen=True)
class PlannedRun:
    """A run to be trained.

    Attributes:
        data: What it is trained on.
        output: Its checkpoint.
        recipe: What to train, with the seed.
    """

    data: DataSet
    output: Path
    recipe: Recipe


def train_all(
    plan: Sequence[PlannedRun],
    options: TrainingOptions,
    textures: Path | None,
    place: Place,
    *,
    progress: Bar,
    notify: Notify,
) -> Iterator[tuple[PlannedRun, ModelSpec]]:
    """Train runs that share size and options; yield each with its spec when it is finished.

    Args:
        plan: The runs, at least one.
        options: As ``train``'s.
        textures: Folder of textures; None for procedural ones.
        place: This process, where each texture is decoded once for all runs; or a cluster, whose
            machines have the package and all files at the same paths.
        progress: Shows how far a run is; on a cluster for several at a time.
        notify: Called with what the user should know.

    Raises:
        JobError: At the end, if runs on a cluster failed; the others are finished.
        BackendError: If the cluster cannot be reached.
        DestsegError: What ``train`` raises: in this process at once; on a cluster only if two runs
            would write one checkpoint, or another command writes it.
    """
    outputs = [one.output for one in plan]
    run.refuse_shared(outputs)
    shared, seat = (
        shared_textures(textures, plan[0].recipe, options, place),
        seat_of(options, place),
    )
    jobs = [(one.output.stem, partial(_train_one, one, options, shared, seat)) for one in plan]
    with held_for(place, outputs, options):
        for i, spec in run_jobs(jobs, seat, progress, notify):
            yield plan[i], spec


def _train_one(
    planned: PlannedRun,
    options: TrainingOptions,
    textures: Path | TextureBank | None,
    seat: Seat,
    progress: Bar,
    notify: Notify,
) -> ModelSpec:
    label = f"training {planned.output.stem}"
    with computing_with(seat.threads), progress(label) as report:
        return run.train(
            planned.data,
            planned.output,
            planned.recipe,
            options,
            textures=textures,
            report=lambda s: report(s.done, s.total, f"{s.phase} loss {s.loss:.4f}"),
            notify=notify,
            held=not seat.place.here,
        )


def seat_of(options: TrainingOptions, place: Place) -> Seat:
    """Return where runs are trained; each takes a GPU, or as many CPUs as it has threads."""
    return Seat(place, options.device, pick_threads(options.threads))


def shared_textures(
    textures: Path | None, recipe: Recipe, options: TrainingOptions, place: Place
) -> Path | TextureBank | None:
    """Return textures for several runs: a bank in this process; on a cluster each run opens them.

    Raises:
        DataError: If the folder does not exist or holds no image.
        BackendError: If the device is not there.
    """
    return run.open_bank(textures, recipe, options.device) if place.here else textures


@contextmanager
def held_for(place: Place, outputs: Sequence[Path], options: TrainingOptions) -> Iterator[None]:
    """Hold the checkpoints of a cluster's runs in this process; in it, ``train`` holds each itself.

    Only the machine of a process knows that it has ended, and Ray may start a run again elsewhere:
    there, a lock of the worker that ended could not be taken over.

    Raises:
        BackendError: If the cluster cannot be reached.
        OutputError: If another command writes one, or it is something else.
    """
    if place.here:
        yield
        return
    # A restart deletes saved states: not before there is a cluster that can make new ones.
    with connected(place.on), ExitStack() as held:
        for output in outputs:
            held.enter_context(run.hold(output, restart=options.restart))
        yield
