"""destseg-bench nncf."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.options import FILE, FOLDER, bit_depth_option


@click.command(cls=OneLineErrors)
@click.argument("fused", type=FILE)
@click.argument("int8", type=FILE)
@click.option("--normal", type=FOLDER, required=True, help="Images of good parts to calibrate on.")
@click.option("--images", type=click.IntRange(1), default=32, show_default=True, help="At most.")
@click.option("--textures", type=FOLDER, help="Textures of the synthetic anomalies.")
@click.option("--output", type=FILE, required=True, help=".xml to write; .bin comes beside it.")
@bit_depth_option
def nncf(
    fused: Path, int8: Path, normal: Path, images: int, textures: Path | None, output: Path
) -> None:
    """Quantise with NNCF the layers that INT8 holds in INT8, calibrated on the same images.

    FUSED is what destseg-export fuse PLAIN --without kernels-twofold wrote, INT8 what
    destseg-export quantize PLAIN wrote. Give --normal, --images and --textures as to quantize. Pass
    the result to destseg-bench cpu --int8, beside INT8.
    """
    from destseg_bench.speed.nncf_int8 import quantize_with_nncf
    from destseg_deploy.data.calibration import add_anomalies, read_normal
    from destseg_deploy.spec import ModelSpec

    # The images that quantize calibrates on: it reads twice as many, and judges on the rest.
    good = read_normal(normal, ModelSpec.read(fused), 2 * images)[:images]
    seen = add_anomalies(good, textures=textures)
    spec = quantize_with_nncf(fused, int8, seen.frames, output)
    say(f"model    {output}")
    if (made := spec.quantization) is not None:
        say(f"int8     {len(made.layers)} layers by {made.quantiser}")
