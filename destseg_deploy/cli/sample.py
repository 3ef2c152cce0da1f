"""destseg-sample."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.options import FOLDER, VERSION


@click.command(cls=OneLineErrors)
@click.option("--output", type=FOLDER, default="data", help="Folder for the category.")
@click.option("--category", default="cable", help="Name of the category.")
@click.option("--size", type=click.IntRange(64, 4096), default=256, help="Image size in pixels.")
@click.option(
    "--train", "train_images", type=click.IntRange(1), default=60, help="Normal images to train on."
)
@click.option("--good", type=click.IntRange(1), default=20, help="Normal test images.")
@click.option("--per-defect", type=click.IntRange(1), default=6, help="Test images of each defect.")
@click.option(
    "--defect-size",
    nargs=2,
    type=click.IntRange(3),
    metavar="LEAST MOST",
    help="Draw small defects of such lengths in pixels, to try tiles with a large --size.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the images.")
@VERSION
def sample(
    output: Path,
    category: str,
    size: int,
    train_images: int,
    good: int,
    per_defect: int,
    defect_size: tuple[int, int] | None,
    seed: int,
) -> None:
    """Draw a sample category in the MVTec AD layout, to try everything without a data set."""
    from destseg_deploy.data.sample.category import write_sample
    from destseg_deploy.files import making

    with making(output):
        folder = write_sample(
            output,
            category=category,
            size=size,
            train=train_images,
            good=good,
            per_defect=per_defect,
            defect_size=defect_size,
            seed=seed,
        )
    say(str(folder))
