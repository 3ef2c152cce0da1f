"""The commands of CPU deployment: destseg-export fuse and destseg-export quantize."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.data_options import DATASET
from destseg_deploy.cli.options import FILE, FOLDER, VERSION, bit_depth_option
from destseg_deploy.spec import QuantizationRecord
from destseg_export.cli.options import (
    CALIBRATION_IMAGES,
    GOOD,
    INT8_SCHEMES,
    PARTS,
    SCHEME,
    TEXTURES,
    VERIFY_IMAGES,
    images_in,
)
from destseg_export.cli.printing import Bar, report


@click.command("fuse", cls=OneLineErrors)
@click.argument("source", type=FILE)
@click.option("--output", type=FILE, help="File to write.  [default: SOURCE itself]")
@click.option("--without", multiple=True, metavar="FUSION", help="Leave a fusion out; repeatable.")
@click.option(
    "--for-int8", is_flag=True, help="Apply only what quantize applies before it quantises."
)
@VERIFY_IMAGES
@bit_depth_option
@click.option(
    "--each",
    "folder",
    type=FOLDER,
    help="Write the fused file, and one without each fusion, here, for destseg-bench rewrites.",
)
@VERSION
def fuse_command(
    source: Path,
    output: Path | None,
    without: tuple[str, ...],
    for_int8: bool,
    verify_images: Path | None,
    folder: Path | None,
) -> None:
    """Fuse an fp32 SOURCE into one with the same answers that costs a sixth less.

    Prints what each fusion changed, and why a node was not changed. When an answer moves by more
    than float32 rounding, nothing is written and the status is 1.
    """
    from destseg_export.fusions.apply import (
        DEFAULT,
        FOR_INT8,
        check_names,
        fuse_file,
        write_variants,
    )

    check_names(without)
    images = images_in(verify_images)
    if folder is not None:
        if output is not None or without or for_int8:
            raise click.UsageError(
                "--each writes its own files: drop --output, --without and --for-int8."
            )
        write_variants(source, folder, images=images, report=report)
        say(f"models   {folder}")
        return
    spec, fusions = fuse_file(
        source,
        output or source,
        names=[name for name in (FOR_INT8 if for_int8 else DEFAULT) if name not in without],
        images=images,
        report=report,
    )
    say(f"model    {output or source}")
    if fusions:
        before, after = fusions[0].macs_before, fusions[-1].macs_after
        say(f"cost     {before / 1e9:.2f} -> {after / 1e9:.2f} GMAC an image")
    if spec.fusion is not None:
        moved = spec.fusion.parity
        say(
            f"moved    map {moved.map_max_abs:.1e}, score {moved.score_max_abs:.1e} on "
            f"{moved.count} {moved.images} (another image's map: {moved.control:.1e})"
        )


@click.command("quantize", cls=OneLineErrors)
@click.argument("source", type=FILE)
@GOOD
@click.option(
    "--labelled",
    type=DATASET,
    help="Labelled images with masks to measure the budget on: a folder or list.  [default: "
    "synthetic anomalies in other images of --good]",
)
@click.option("--output", type=FILE, help="File to write.  [default: SOURCE with -int8]")
@SCHEME
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    help="Points that pixel AP and image AUROC may lose each.",
)
@PARTS
@CALIBRATION_IMAGES
@TEXTURES
@bit_depth_option
@VERSION
def quantize_command(
    source: Path,
    normal: Path,
    labelled: Path | None,
    output: Path | None,
    scheme: str,
    max_drop: float,
    parts: tuple[str, ...],
    images: int,
    textures: Path | None,
) -> None:
    """Write an INT8 version of a plain fp32 SOURCE if it keeps the accuracy.

    Layers that cost too much accuracy go back to float32. When the budget cannot be met, nothing
    is written and the status is 1.
    """
    from destseg_export.int8.quantize import Int8Options, quantize_artifact

    target = output or source.with_name(f"{source.stem.removesuffix('-fp32')}-int8.onnx")
    options = Int8Options(
        scheme=INT8_SCHEMES[scheme],
        parts=parts,
        max_drop=max_drop,
        images=images,
        textures=textures,
    )
    with closing(Bar("ranking layers")) as bar:
        spec = quantize_artifact(
            source,
            target,
            normal,
            labelled=labelled,
            options=options,
            report=report,
            advance=bar.steps,
        )
    say(f"model    {target}")
    if spec.quantization is not None:
        _tell_quantization(spec.quantization)
    if spec.threshold is not None:
        say(
            f"threshold   {spec.threshold.score:.4f}, set for fp32; int8 moves scores. "
            f"Set it anew: destseg-threshold {target} --good FOLDER"
        )


def _tell_quantization(made: QuantizationRecord) -> None:
    share = 100 * (made.share_of_macs or 0)
    say(f"int8     {len(made.layers)} layers, {share:.0f} % of the MACs")
    say(f"given back  {', '.join(made.given_back) or 'none'}")
    if made.fp32 is not None and made.int8 is not None:
        before, after = made.fp32, made.int8
        say(f"pixel AP    {before.pixel_ap:.4f} -> {after.pixel_ap:.4f}")
        say(f"image AUROC {before.image_auroc:.4f} -> {after.image_auroc:.4f}")
    say(f"measured on {made.count} images, {made.images}")
