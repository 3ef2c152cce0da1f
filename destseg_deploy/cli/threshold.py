"""destseg-threshold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from destseg_deploy.cli.console import OneLineErrors, is_typed, progress, say
from destseg_deploy.cli.data_options import DATASET, NG
from destseg_deploy.cli.options import (
    ARTIFACT,
    RATE,
    VERSION,
    bit_depth_option,
    echo_threshold,
    runtime_options,
)
from destseg_deploy.loading import load
from destseg_deploy.spec import ModelSpec, Threshold

if TYPE_CHECKING:
    from destseg_deploy.predictor import Predictor


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.option(
    "--good",
    "--normal",
    "normal",
    type=DATASET,
    help="Set from good parts that were not trained on: a folder or list.",
)
@NG
@click.option(
    "--labelled", type=DATASET, help="Set by best F1 on labelled images, as --good with --ng does."
)
@click.option("--value", type=float, help="Set the score threshold by hand, in [0, 1].")
@click.option(
    "--pixel",
    type=float,
    help="With --value: outline map values above this, in [0, 1].  [default: --value]",
)
@RATE
@bit_depth_option
@runtime_options
@VERSION
def threshold(
    artifact: Path,
    normal: Path | None,
    ng: tuple[Path, ...],
    labelled: Path | None,
    value: float | None,
    pixel: float | None,
    false_reject_rate: float,
    **how: Any,
) -> None:
    """Show or set the threshold of an artifact; the model itself is not touched.

    An image is NG when its score is greater than the threshold, else OK.

    Images and masks are PNG, JPEG, BMP or TIFF. Those with an orientation tag or several pages are
    refused.
    """
    from destseg_deploy import thresholds

    if ng and normal is None:
        raise click.UsageError("--ng goes with --good: a folder of each.")
    if sum(choice is not None for choice in (normal, labelled, value)) > 1:
        raise click.UsageError("Give one of --good, --labelled and --value.")
    if pixel is not None and value is None:
        raise click.UsageError("--pixel goes with --value; the other rules set both thresholds.")
    if is_typed("false_reject_rate") and (normal is None or ng):
        raise click.UsageError(
            "--false-reject-rate goes with --good alone; the other rules need no rate. Drop it, or "
            "pass --good FOLDER without --ng."
        )
    if value is not None:
        thresholds.set_threshold(artifact, thresholds.by_hand(value, pixel))
    elif normal is not None or labelled is not None:
        with load(artifact, **how) as predictor:
            found = _measure(predictor, normal, ng, labelled, false_reject_rate)
        thresholds.set_threshold(artifact, found)
    echo_threshold(ModelSpec.read(artifact).threshold, artifact)


def _measure(
    predictor: Predictor,
    normal: Path | None,
    ng: tuple[Path, ...],
    labelled: Path | None,
    rate: float,
) -> Threshold:
    """Measure the threshold, and say where it rests on the wrong or on too few images."""
    from destseg_deploy import thresholds
    from destseg_deploy.data.datasets import of_folders, open_dataset
    from destseg_deploy.data.seen import seen_in_training

    record = predictor.spec.training
    with progress("scoring") as advance:
        if normal is not None and not ng:
            images = open_dataset(normal).good()
            found = thresholds.measure_normal(predictor, images, rate, report=advance)
            if lack := thresholds.too_few(len(images), rate):
                say(f"note: {lack}", err=True)
        else:
            data = open_dataset(labelled) if labelled else of_folders(normal or Path(), ng)
            images = [sample.image for sample in data.test()]
            found = thresholds.measure_labelled(predictor, data, report=advance)
    if seen := seen_in_training(record, images):
        say(
            f"note: {len(seen)} of {len(images)} images were trained on, such as {seen[0]}; new "
            "good parts score higher, and more of them will be rejected. Use images that were not.",
            err=True,
        )
    return found
