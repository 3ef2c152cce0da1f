"""destseg-bench nncf."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.options import FILE, FOLDER
from destseg_deploy.console import OneLineErrors


@click.command(cls=OneLineErrors)
@click.argument("fused", type=FILE)
@click.argument("int8", type=FILE)
@click.option("--images", type=FOLDER, required=True, help="Folder with images to calibrate on.")
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help="At most.")
@click.option("--output", type=FILE, required=True, help=".xml to write; .bin comes beside it.")
def nncf(fused: Path, int8: Path, images: Path, count: int, output: Path) -> None:
    """Quantise with NNCF the layers that INT8 holds in INT8.

    FUSED is what destseg-export fuse PLAIN --without kernels-twofold wrote, INT8 what
    destseg-export quantize PLAIN did. Pass the result to destseg-bench cpu --int8, beside INT8.
    """
    from destseg_bench.latency import find_frames, stack_frames
    from destseg_bench.nncf_rival import write_rival
    from destseg_deploy.spec import ModelSpec

    paths = find_frames(images, count)
    frames = stack_frames(paths, ModelSpec.read(fused).size, len(paths))
    spec = write_rival(fused, int8, frames, output)
    click.echo(f"model    {output}")
    click.echo(f"int8     {len(spec.parity['layers'])} layers by {spec.parity['quantiser']}")
