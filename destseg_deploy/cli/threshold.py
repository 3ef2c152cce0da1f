"""destseg-threshold."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.options import (
    ARTIFACT,
    DEVICE,
    FOLDER,
    OPENVINO_PRECISION,
    RATE,
    VERSION,
    echo_threshold,
    openvino_options,
)
from destseg_deploy.console import OneLineErrors
from destseg_deploy.spec import Threshold


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.option(
    "--normal", type=FOLDER, help="Set from a folder of good parts that were not trained on."
)
@click.option(
    "--labelled", type=FOLDER, help="Set by best F1 on a labelled MVTec AD category folder."
)
@click.option("--value", type=float, help="Set the score threshold by hand, in [0, 1].")
@click.option("--pixel", type=float, help="With --value: the threshold of contours.")
@RATE
@DEVICE
@OPENVINO_PRECISION
@VERSION
def threshold(
    artifact: Path,
    normal: Path | None,
    labelled: Path | None,
    value: float | None,
    pixel: float | None,
    false_reject_rate: float,
    device: str | None,
    openvino_precision: str | None,
) -> None:
    """Show or set the threshold of an artifact; the model itself is not touched.

    An image is anomalous when its score is greater than the threshold.
    """
    from destseg_deploy import judging

    if sum(choice is not None for choice in (normal, labelled, value)) > 1:
        raise click.UsageError("Give one of --normal, --labelled and --value.")
    if pixel is not None and value is None:
        raise click.UsageError("--pixel goes with --value; the other rules set both thresholds.")
    options = openvino_options(openvino_precision)
    result: Threshold | None
    if value is not None:
        result = judging.set_by_hand(artifact, value, pixel)
    elif normal is not None:
        result = judging.set_from_normal(
            artifact, normal, rate=false_reject_rate, device=device, openvino=options
        )
    elif labelled is not None:
        result = judging.set_from_labelled(artifact, labelled, device=device, openvino=options)
    else:
        result = judging.read(artifact)
    echo_threshold(result, artifact)
