"""destseg-train, destseg-evaluate, destseg-predict, destseg-threshold and destseg-sample."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import click

from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.predictor import load
from destseg_deploy.spec import Threshold

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
ARTIFACT = click.argument("artifact", type=FILE)
VERSION = click.version_option(package_name="destseg-deploy")
DATA = click.option("--data", type=FOLDER, default="data", help="Folder that holds the categories.")
DEVICE = click.option("--device", default="cpu", metavar="cpu|cuda[:N]", help="Where to run.")
THREADS = click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    help="CPU threads of ONNX Runtime; 0: its choice.",
)
RATE = click.option(
    "--false-reject-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    help="Share of good parts that the threshold may reject.",
)


def _known_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r}: expected auto, cpu, cuda or cuda:<index>.")
    return value


@click.command(cls=OneLineErrors)
@click.option("--category", required=True, help="Folder below --data to train on.")
@DATA
@click.option("--output", type=FOLDER, default="artifacts", help="Folder for the checkpoint.")
@click.option(
    "--preset",
    type=click.Choice(["paper", "quick"]),
    default="paper",
    help="paper: 1,000 + 4,000 steps of 32 images at 256 px, for a GPU. quick: minutes on a CPU.",
)
@click.option(
    "--textures",
    type=FOLDER,
    help="Texture images for anomalies (dtd/images); built-in ones if left out.",
)
@click.option(
    "--teacher-weights",
    type=FILE,
    help="ImageNet ResNet18, .pth or .safetensors; torchvision's (cache or download) if left out.",
)
@click.option(
    "--teacher",
    type=click.Choice(["imagenet", "random"]),
    default="imagenet",
    help="random needs no weights: for demonstrations only.",
)
@click.option(
    "--steps",
    metavar="STUDENT,SEGMENTATION",
    help="Steps of the two phases.  [default: the preset's]",
)
@click.option(
    "--decay",
    type=click.Choice(["none", "cosine"]),
    help="Learning rates over each phase: constant, or down to zero.  [default: the preset's]",
)
@click.option("--batch-size", type=int, help="Images per step.  [default: the preset's]")
@click.option("--size", type=int, help="Image size of the network.  [default: the preset's]")
@click.option(
    "--rotation",
    type=click.Choice(["none", "slight", "full"]),
    help="Rotation of normal images.  [default: the category's in the paper, else slight]",
)
@click.option(
    "--holdout",
    type=float,
    help="Share of normal images kept from training to set the threshold.  [default: the preset's]",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="Seed of weights, order and anomalies."
)
@click.option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda[:N]",
    callback=_known_device,
    help="Where to train.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    help="auto: bf16 autocast where the device has it.",
)
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes that prepare images.")
@RATE
@VERSION
def train(
    category: str,
    data: Path,
    output: Path,
    preset: str,
    textures: Path | None,
    teacher_weights: Path | None,
    teacher: str,
    steps: str | None,
    decay: str | None,
    batch_size: int | None,
    size: int | None,
    rotation: str | None,
    holdout: float | None,
    seed: int,
    device: str,
    precision: str,
    workers: int,
    false_reject_rate: float,
) -> None:
    """Train DeSTSeg on the normal images of a category.

    Reads DATA/CATEGORY/train/good and writes OUTPUT/CATEGORY.safetensors with its .json.
    """
    from destseg_deploy import training
    from destseg_deploy.data.mvtec import find_category
    from destseg_deploy.recipe import make_recipe

    changes = {
        "batch_size": batch_size,
        "size": size,
        "rotation": rotation,
        "holdout": holdout,
        "decay": decay,
        "seed": seed,
        **_two_numbers(steps),
    }
    recipe = make_recipe(preset, **changes)
    with progress(f"training {category}") as advance:
        spec = training.train(
            find_category(data, category),
            output / f"{category}.safetensors",
            recipe,
            textures=textures,
            teacher_weights=teacher_weights,
            teacher=teacher,
            device=device,
            precision=precision,
            workers=workers,
            false_reject_rate=false_reject_rate,
            report=lambda p: advance(p.done, p.total, f"{p.phase} loss {p.loss:.4f}"),
        )
    click.echo(f"checkpoint  {output / spec.artifact.file}")
    click.echo(f"trained     {spec.training['images']} images, {spec.training['seconds']:.0f} s")
    _echo_threshold(spec.threshold, output / spec.artifact.file)


def _two_numbers(steps: str | None) -> dict[str, int]:
    if steps is None:
        return {}
    parts = steps.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(
            f"{steps!r}: expected two numbers such as 1000,4000", param_hint="--steps"
        )
    return {"student_steps": int(parts[0]), "segmentation_steps": int(parts[1])}


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.option("--category", help="Folder below --data.  [default: the artifact's category]")
@DATA
@DEVICE
@THREADS
@click.option("--batch-size", type=int, help="Images per call.  [default: the artifact's optimum]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@VERSION
def evaluate(
    artifact: Path,
    category: str | None,
    data: Path,
    device: str,
    threads: int,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Measure a checkpoint or exported model on a category's labelled test images.

    Image AUROC and F1, and with ground-truth masks pixel AUROC, pixel AP, PRO and IAP.
    """
    from destseg_deploy.data.mvtec import find_category
    from destseg_deploy.evaluation import compute_metrics, score_test_set

    with load(artifact, device=device, threads=threads) as predictor:
        spec = predictor.spec
        folder = find_category(data, category or spec.category)
        with progress("scoring") as advance:
            test = score_test_set(predictor, folder, batch_size=batch_size, report=advance)
    result = compute_metrics(test)
    judged = None if spec.threshold is None else test.judged(spec.threshold.score)
    if as_json:
        answer = {"artifact": str(artifact), "data": str(folder), **result.to_dict()}
        answer["judged"] = None if judged is None else asdict(judged)
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(f"{artifact} on {folder}: {result.images} images, {result.anomalous} anomalous")
    for name, value in result.rows():
        click.echo(f"  {name:<12} {value:.4f}")
    if judged is not None and spec.threshold is not None:
        click.echo(
            f"  at score > {spec.threshold.score:.4f}: {judged.false_rejects} of "
            f"{result.images - result.anomalous} good parts rejected, {judged.missed} of "
            f"{result.anomalous} defects missed"
        )
    click.echo(f"  {'defect':<20} {'images':>6} {'AUROC':>7} {'lowest score':>13}")
    for row in result.defects:
        click.echo(
            f"  {row.defect:<20} {row.images:>6} {row.image_auroc:>7.4f} {row.lowest_score:>13.4f}"
        )
    for path in result.vanished:
        click.echo(f"note: the mask of {path} has no pixel left at the map's size", err=True)


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--output", type=FOLDER, default="predictions", help="Folder for the table and overlays."
)
@click.option(
    "--format",
    "table",
    type=click.Choice(["csv", "json"]),
    default="csv",
    help="Format of the table.",
)
@click.option("--overlays/--no-overlays", default=True, help="Write a picture for each image.")
@DEVICE
@THREADS
@click.option("--batch-size", type=int, help="Images per call.  [default: the artifact's optimum]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on stdout.")
@VERSION
def predict(
    artifact: Path,
    images: tuple[str, ...],
    output: Path,
    table: str,
    overlays: bool,
    device: str,
    threads: int,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Score images: files, folders or quoted globs.

    Writes OUTPUT/predictions.csv (or .json), an overlay for each image, with the heat map, the
    contour at the pixel threshold, the score and the verdict, and overview.png, the highest scores
    on one page. Nothing is written when an image cannot be read.
    """
    from destseg_deploy.data.images import expand
    from destseg_deploy.prediction import predict_files

    paths = expand(images)
    with (
        load(artifact, device=device, threads=threads) as predictor,
        progress("predicting") as advance,
    ):
        rows = predict_files(
            predictor,
            paths,
            output,
            table=table,
            overlays=overlays,
            batch_size=batch_size,
            report=advance,
        )
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        click.echo(f"{row.score:.4f}  {row.verdict:<10}  {row.image}")
    found = f"{sum(row.verdict == 'anomalous' for row in rows)} anomalous"
    if rows[0].verdict == "unjudged":
        found = f"no threshold yet: destseg-threshold {artifact} --normal FOLDER"
    click.echo(f"{len(rows)} {'image' if len(rows) == 1 else 'images'}, {found}", err=True)
    click.echo(f"written to {output}", err=True)


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
@VERSION
def threshold(
    artifact: Path,
    normal: Path | None,
    labelled: Path | None,
    value: float | None,
    pixel: float | None,
    false_reject_rate: float,
    device: str,
) -> None:
    """Show or set the threshold of an artifact; the model itself is not touched.

    An image is anomalous when its score is greater than the threshold.
    """
    from destseg_deploy import judging

    if sum(choice is not None for choice in (normal, labelled, value)) > 1:
        raise click.UsageError("Give one of --normal, --labelled and --value.")
    if pixel is not None and value is None:
        raise click.UsageError("--pixel goes with --value; the other rules set both thresholds.")
    result: Threshold | None
    if value is not None:
        result = judging.set_by_hand(artifact, value, pixel)
    elif normal is not None:
        result = judging.set_from_normal(artifact, normal, rate=false_reject_rate, device=device)
    elif labelled is not None:
        result = judging.set_from_labelled(artifact, labelled, device=device)
    else:
        result = judging.read(artifact)
    _echo_threshold(result, artifact)


def _echo_threshold(result: Threshold | None, artifact: Path) -> None:
    if result is None:
        click.echo(f"threshold   none yet: destseg-threshold {artifact} --normal FOLDER")
        return
    click.echo(f"threshold   score > {result.score:.6f}, contour at {result.pixel:.6f}")
    click.echo(f"rule        {result.rule}")


@click.command(cls=OneLineErrors)
@click.option("--output", type=FOLDER, default="data", help="Folder for the category.")
@click.option("--category", default="cable", help="Name of the category.")
@click.option("--size", type=click.IntRange(64, 4096), default=256, help="Image size in pixels.")
@click.option(
    "--train", "train_images", type=click.IntRange(1), default=60, help="Normal images to train on."
)
@click.option("--good", type=click.IntRange(1), default=20, help="Normal test images.")
@click.option("--per-defect", type=click.IntRange(1), default=6, help="Test images of each defect.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the images.")
@VERSION
def sample(
    output: Path, category: str, size: int, train_images: int, good: int, per_defect: int, seed: int
) -> None:
    """Draw a sample category in the MVTec AD layout, to try everything without a data set."""
    from destseg_deploy.data.sample import write_sample

    folder = write_sample(
        output,
        category=category,
        size=size,
        train=train_images,
        good=good,
        per_defect=per_defect,
        seed=seed,
    )
    click.echo(folder)
