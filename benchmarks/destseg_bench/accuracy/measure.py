"""Trains runs where asked, measures their checkpoints, and keeps a file of the results so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from destseg_bench.accuracy.runs import Run
from destseg_bench.results import write_result
from destseg_bench.speed.agreement import describe_training
from destseg_deploy.cluster.jobs import Bar, Notify, Report, Seat, run_jobs
from destseg_deploy.cluster.place import Place
from destseg_deploy.data.mvtec import list_test, read_masks
from destseg_deploy.environment import describe_environment
from destseg_deploy.errors import DataError
from destseg_deploy.evaluation.test_set import (
    Evaluation,
    TopKRow,
    compute_metrics,
    score_test_set,
    sweep_top_k,
)
from destseg_deploy.loading import load
from destseg_deploy.spec import ModelSpec, TrainingRecord
from destseg_deploy.training.precision import computing_with, pick_device
from destseg_deploy.training.recipe import Recipe, TrainingOptions
from destseg_deploy.training.run import shared_textures, train

METRICS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "iap": "IAP",
    "iap_at_90": "IAP@90",
}
"""Metric -> its name in a table."""

Trainer = Callable[[Run, Report, Notify], None]
"""Makes the checkpoint of a run."""


ALONE = Seat(threads=0)
"""This process, on the CPU, with PyTorch's threads."""


@dataclass(frozen=True)
class MeasuredRun:
    """A run and what was measured of it.

    Attributes:
        run: The run.
        trained: How it was trained, as its spec says.
        evaluation: The metrics of its test set.
        sweep: Its image AUROC for each T of the paper's Table S1.
    """

    run: Run
    trained: dict[str, Any]
    evaluation: Evaluation
    sweep: tuple[TopKRow, ...] = ()

    @property
    def category(self) -> str:
        """Name of the category."""
        return self.run.category.name

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.run.seed

    def value(self, metric: str) -> float | None:
        """Return one of ``METRICS``, in [0, 1]; None where the category has no masks."""
        pixel = self.evaluation.pixel
        if metric == "image_auroc":
            return self.evaluation.image_auroc
        if pixel is None:
            return None
        return {
            "pixel_auroc": pixel.auroc,
            "pixel_ap": pixel.ap,
            "pro": pixel.pro,
            "iap": pixel.iap,
            "iap_at_90": pixel.iap_at_recall,
        }[metric]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values without paths of this machine, for JSON."""
        found = self.evaluation.to_dict()
        found["vanished"] = ["/".join(Path(path).parts[-2:]) for path in found["vanished"]]
        return {
            "category": self.category,
            "seed": self.seed,
            "settings": list(self.run.settings),
            **self.trained,
            "metrics": {metric: self.value(metric) for metric in METRICS},
            "sweep_t": [asdict(row) for row in self.sweep],
            "evaluation": found,
        }


def measure_runs(
    runs: Sequence[Run],
    summarize: Callable[[Sequence[MeasuredRun]], dict[str, Any]],
    *,
    seat: Seat = ALONE,
    trainer: Trainer | None = None,
    output: Path | None = None,
    progress: Bar = lambda label: nullcontext(lambda done, total, remark: None),
    notify: Notify = lambda message: None,
) -> list[MeasuredRun]:
    """Train the runs, if asked, and measure each as soon as its checkpoint is there.

    Args:
        runs: What to measure.
        summarize: Makes the file's ``summary``.
        seat: Where each run is trained and measured.
        trainer: Makes each checkpoint first; None where they are there.
        output: JSON, written anew after every run; ``complete`` says whether it has them all.
        progress: Shows how far it is.
        notify: Called with what the user should know.

    Raises:
        DataError: If two runs are the same, or a category cannot be tested on.
        TrainingError: If a run cannot be trained.
        JobError: At the end, if runs on a cluster failed.
        BackendError: If the cluster cannot be reached, or the device is not there.
        SpecError: If a checkpoint is not what its spec describes.
        MetricError: If maps hold NaN.
        OSError: If the file cannot be written.
    """
    refuse_twins(runs)
    for folder in dict.fromkeys(run.category for run in runs):
        # Images and masks are checked now: their errors would come after hours of training.
        read_masks(list_test(folder), (1, 1))
    jobs = [(run.name, partial(_train_and_measure, run, trainer, seat)) for run in runs]
    environment, done = describe_environment(), dict[int, MeasuredRun]()
    for i, one in run_jobs(jobs, seat, progress, notify):
        done[i] = one
        if output is not None:
            measured = _in_order(done)
            result = {
                "environment": environment,
                "complete": len(done) == len(runs),
                "runs_planned": len(runs),
                "runs": [one.to_dict() for one in measured],
                "summary": summarize(measured),
            }
            write_result(output, result)
    return _in_order(done)


def _in_order(done: dict[int, MeasuredRun]) -> list[MeasuredRun]:
    return [done[i] for i in sorted(done)]


def _train_and_measure(
    run: Run, trainer: Trainer | None, seat: Seat, progress: Bar, notify: Notify
) -> MeasuredRun:
    with computing_with(seat.threads):
        if trainer is not None:
            with progress(f"training {run.name}") as report:
                trainer(run, report, notify)
        with progress(f"scoring {run.name}") as report:
            return measure_run(run, str(pick_device(seat.device)), report)


def refuse_twins(runs: Sequence[Run]) -> None:
    """Refuse two runs of the same category and seed, and of the same setting if any.

    Raises:
        DataError: If two do; their average would count one training twice.
    """
    seen: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        for setting in run.settings or ("",):
            key = (setting, run.category.name, run.seed)
            if twin := seen.get(key):
                raise DataError(
                    f"{run.checkpoint}: category {key[1]} and seed {key[2]}, as "
                    f"{twin.checkpoint}. Expected one checkpoint of each; move one away."
                )
            seen[key] = run


def measure_run(run: Run, device: str, report: Report) -> MeasuredRun:
    """Measure a checkpoint on its category, with the code of destseg-evaluate.

    Raises:
        SpecError: If it is not what its spec describes.
        DataError: If the category cannot be tested on.
        MetricError: If maps hold NaN.
    """
    with load(run.checkpoint, device=device) as predictor:
        test = score_test_set(predictor, run.category, report=report)
    return MeasuredRun(run, describe_run(run.checkpoint), compute_metrics(test), sweep_top_k(test))


def describe_run(checkpoint: Path) -> dict[str, Any]:
    """Return how a checkpoint was trained: ``describe_training``, textures and loop."""
    training = ModelSpec.read(checkpoint).training or TrainingRecord()
    textures = training.textures
    return {
        **describe_training(checkpoint),
        "textures": textures and "/".join(Path(textures).parts[-2:]),
        "loop": training.loop,
    }


def make_trainer(
    recipe: Recipe, options: TrainingOptions, textures: Path | None, place: Place
) -> Trainer:
    """Return what trains runs that share size and options.

    Args:
        recipe: Any of the runs' recipes: its size is that of the textures.
        options: As ``train``'s; each group of runs gets a folder of its own for TensorBoard.
        textures: Folder of textures; None for procedural ones.
        place: Where they are trained. Here, each texture is decoded once for all; on a cluster the
            caller holds the checkpoints (``held_for``).

    Raises:
        DataError: If the textures are not there.
        BackendError: If the device is not there.
    """
    shared = shared_textures(textures, recipe, options, place)

    def make(run: Run, report: Report, notify: Notify) -> None:
        log = options.tensorboard and options.tensorboard / run.group
        train(
            run.category,
            run.checkpoint,
            run.recipe,
            replace(options, tensorboard=log),
            textures=shared,
            report=lambda p: report(p.done, p.total, f"{p.phase} loss {p.loss:.4f}"),
            notify=notify,
            held=not place.here,
        )

    return make
