"""The commands of CPU deployment: destseg-export fuse and destseg-export quantize."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from destseg_deploy.console import OneLineErrors, progress
from destseg_export.int8_parts import PARTS

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


def _say(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Give a function that shows a bar from its first call until all is done; lines may follow."""
    with ExitStack() as stack:
        shown: list[Callable[[int, int, str], None]] = []

        def advance(done: int, total: int, text: str) -> None:
            if not shown:
                shown.append(stack.enter_context(progress(label)))
            shown[0](done, total, text)
            if done == total:
                stack.close()

        yield advance


@click.command("fuse", cls=OneLineErrors)
@click.argument("source", type=FILE)
@click.option("--output", type=FILE, help="File to write.  [default: SOURCE itself]")
@click.option(
    "--without", multiple=True, metavar="REWRITE", help="Leave a rewrite out; repeatable."
)
@click.option(
    "--verify-images",
    type=FOLDER,
    help="Images to compare on.  [default: the training data's test images, or rendered ones]",
)
@click.option(
    "--each",
    "folder",
    type=FOLDER,
    help="Write the whole and one file without each rewrite here, for destseg-bench rewrites.",
)
@click.version_option(package_name="destseg-deploy")
def fuse_command(
    source: Path,
    output: Path | None,
    without: tuple[str, ...],
    verify_images: Path | None,
    folder: Path | None,
) -> None:
    """Rewrite an fp32 SOURCE into one with the same answers that costs a sixth less.

    Prints what each rewrite changed and why it left a node. When an answer moves by more than
    float32 rounding, nothing is written and the status is 1.
    """
    from destseg_deploy.data.images import expand
    from destseg_export.fuse_file import fuse_file
    from destseg_export.fuse_variants import write_variants
    from destseg_export.fusing import DEFAULT, check_names

    check_names(without)
    images = expand([str(verify_images)]) if verify_images else None
    if folder is not None:
        if output is not None or without:
            raise click.UsageError("--each writes its own files: drop --output and --without.")
        write_variants(source, folder, images=images, report=_say)
        click.echo(f"models   {folder}")
        return
    spec, fusions = fuse_file(
        source,
        output or source,
        names=[name for name in DEFAULT if name not in without],
        images=images,
        report=_say,
    )
    moved = spec.parity["fused"]
    click.echo(f"model    {output or source}")
    if fusions:
        before, after = fusions[0].macs_before, fusions[-1].macs_after
        click.echo(f"cost     {before / 1e9:.2f} -> {after / 1e9:.2f} GMAC an image")
    click.echo(
        f"moved    map {moved['map_max_abs']:.1e}, score {moved['score_max_abs']:.1e} on "
        f"{moved['count']} {moved['images']} (another image's map: {moved['control']:.1e})"
    )


@click.command("quantize", cls=OneLineErrors)
@click.argument("source", type=FILE)
@click.option("--normal", type=FOLDER, required=True, help="Images of good parts to calibrate on.")
@click.option(
    "--labelled",
    type=FOLDER,
    help="Category in the MVTec AD layout to measure the budget on.  [default: synthetic "
    "anomalies in other images of --normal]",
)
@click.option("--output", type=FILE, help="File to write.  [default: SOURCE with -int8]")
@click.option(
    "--for",
    "scheme",
    type=click.Choice(["cpu", "tensorrt"]),
    default="cpu",
    show_default=True,
    help="Who runs it: x86 multiplies uint8 by int8, TensorRT takes symmetric int8.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    help="Points that pixel AP and image AUROC may lose each.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(PARTS),
    default=PARTS,
    help="What may be quantised; repeatable.",
)
@click.option(
    "--images", type=click.IntRange(min=2), default=32, show_default=True, help="To calibrate on."
)
@click.option("--textures", type=FOLDER, help="Textures of the synthetic anomalies.")
@click.version_option(package_name="destseg-deploy")
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
    from destseg_export.quantize import Int8Options, quantize_artifact

    target = output or source.with_name(f"{source.stem.removesuffix('-fp32')}-int8.onnx")
    options = Int8Options(
        scheme={"cpu": "u8", "tensorrt": "s8"}[scheme],
        parts=parts,
        max_drop=max_drop,
        images=images,
        textures=textures,
    )
    with _bar("ranking layers") as advance:
        spec = quantize_artifact(
            source,
            target,
            normal,
            labelled=labelled,
            options=options,
            report=_say,
            advance=advance,
        )
    found = spec.parity
    click.echo(f"model    {target}")
    click.echo(
        f"int8     {len(found['layers'])} layers, {100 * found['share_of_macs']:.0f} % of the MACs"
    )
    click.echo(f"given back  {', '.join(found['given_back']) or 'none'}")
    for name, title in (("pixel_ap", "pixel AP"), ("image_auroc", "image AUROC")):
        click.echo(f"{title:<12}{found['fp32'][name]:.4f} -> {found['int8'][name]:.4f}")
    click.echo(f"measured on {found['count']} images, {found['images']}")
    if spec.threshold is not None:
        click.echo(
            f"threshold   {spec.threshold.score:.4f}, set for fp32; int8 moves scores. "
            f"Set it anew: destseg-threshold {target} --normal FOLDER"
        )
