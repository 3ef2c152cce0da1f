"""destseg-bench table-s4, which is also what destseg-bench does without a subcommand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from destseg_bench.results import require_rows, start_result, write_result
from destseg_deploy.cli.console import OneLineErrors, progress, say
from destseg_deploy.cli.options import FILE, FOLDER, PLACE, bit_depth_option, counts
from destseg_deploy.cli.result_option import result_option
from destseg_deploy.files import scratch

if TYPE_CHECKING:
    from destseg_bench.systems.table_s4 import Protocol

SAMPLE_TRAIN = 224
"""Normal images of the built-in category: as many as MVTec AD's cable has."""

PROTOCOL = (
    "contenders take turns, call by call, in an order that shifts by one each round",
    "ms: from the prepared image on the device to map and score there, batch 1, median",
    "file to answer: decoding, resizing, both copies and the model",
    "minutes: steps of the schedule times the median seconds per step; images are decoded "
    "beforehand, and nothing is evaluated",
    "on a GPU every stage is waited for; its own events are beside the host's clock",
)


def _weights(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, Path]:
    found = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            raise click.BadParameter(f"{value!r}: expected NAME=FILE, such as resnet18=r18.pth.")
        if not Path(path).is_file():
            raise click.BadParameter(f"{path}: no such file, given for {name}.")
        found[name] = Path(path)
    return found


WEIGHTS = click.option(
    "--weights",
    multiple=True,
    metavar="NAME=FILE",
    callback=_weights,
    help="Pretrained weights: resnet18, wide_resnet50_2 or vq; repeatable.",
)
OPTIONS = (
    click.option(
        "--system",
        "names",
        multiple=True,
        help="A system to measure; repeatable.  [default: Table S4's; 'all' adds S5's]",
    ),
    click.option("--category", help="Folder below --data.  [default: a drawn one]"),
    click.option("--data", type=FOLDER, help="Folder that holds the categories."),
    click.option("--textures", type=FOLDER, help="Texture images; built-in ones if left out."),
    WEIGHTS,
    click.option(
        "--artifact",
        "artifacts",
        type=FILE,
        multiple=True,
        help="Checkpoint, .onnx or .engine to time as well; repeatable.",
    ),
    bit_depth_option,
    PLACE,
    click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: torch's."),
    click.option("--tf32", is_flag=True, help="Let a GPU round float32 to TF32, as torch does."),
    click.option(
        "--batch", "batches", default="1,8", metavar="N[,N...]", callback=counts, help="Sizes."
    ),
    click.option("--rounds", type=click.IntRange(1), default=20, help="Calls that count."),
    click.option("--warmup", type=click.IntRange(1), default=2, help="Calls before, which do not."),
    click.option(
        "--training-rounds", type=click.IntRange(0), default=3, help="Steps per stage; 0: none."
    ),
    click.option("--full", is_flag=True, help="Train every system to the end; takes days."),
    click.option("--quick", is_flag=True, help="Batch 1, few calls, no training; minutes."),
    click.option("--seed", type=click.IntRange(0), default=0, help="Seed of every choice."),
    result_option("JSON file, written anew after each part."),
)
QUICK = {"batches": (1,), "rounds": 4, "warmup": 1, "training_rounds": 0}


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command("table-s4", cls=OneLineErrors)
@_options
def table_s4(
    names: tuple[str, ...],
    artifacts: tuple[Path, ...],
    threads: int,
    tf32: bool,
    device: str,
    output: Path | None,
    **options: Any,
) -> None:
    """Measure Table S4: training and inference time of DeSTSeg and what it is compared with.

    Without --category a category is drawn, so that nothing has to be at hand. Pretrained weights
    that are not there are random, which the table says; time does not depend on them.
    """
    import torch

    from destseg_bench.report.speed_tables import table_s4 as tables
    from destseg_bench.speed.latency import find_frames
    from destseg_bench.systems.catalogue import check_systems
    from destseg_bench.systems.system import Task
    from destseg_bench.systems.table_s4 import OTHERS, TABLE, Protocol, measure_table
    from destseg_deploy.training.precision import pick_device

    if options.pop("quick"):
        options.update(QUICK)
    place = pick_device(device)
    chosen = (*TABLE, *OTHERS) if names == ("all",) else names or TABLE
    check_systems(chosen)
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    fields = ("batches", "rounds", "warmup", "training_rounds", "full")
    protocol = Protocol(**{name: options.pop(name) for name in fields})
    with _folder(options.pop("category"), options.pop("data")) as folder:
        task = Task.of_category(folder, "paper", device=place, pretrained=False, **options)
        result = start_result(
            "table-s4",
            **task.to_dict(),
            threads=torch.get_num_threads(),
            tf32=tf32,
            protocol={**asdict(protocol), "notes": list(PROTOCOL)},
            complete=False,
        )

        def save(systems: dict[str, Any]) -> None:
            result["systems"] = systems
            write_result(output, result)

        images = find_frames(folder / "test", max(8, *protocol.batches))
        with progress("measuring") as advance:
            systems = measure_table(chosen, task, images, protocol, save=save, report=advance)
        if artifacts:
            result["artifacts"] = _artifacts(artifacts, str(place), threads, images, protocol)
    result["complete"] = True
    save(systems)
    require_rows(systems)
    for table in tables(result):
        click.echo(table.text())
    click.echo("\n".join(f"- {note}" for note in PROTOCOL))


@contextmanager
def _folder(category: str | None, data: Path | None) -> Iterator[Path]:
    """Give the category's folder, or a drawn one while it is needed."""
    from destseg_deploy.data.mvtec import find_category
    from destseg_deploy.data.sample.category import write_sample

    if (category is None) != (data is None):
        raise click.UsageError("Give both --category and --data, or neither for a drawn category.")
    if category is not None and data is not None:
        yield find_category(data, category)
        return
    with scratch() as folder:
        say(f"drawing {SAMPLE_TRAIN} normal images", err=True)
        yield write_sample(folder, train=SAMPLE_TRAIN, good=8, per_defect=1)


def _artifacts(
    artifacts: tuple[Path, ...], device: str, threads: int, images: list[Path], protocol: Protocol
) -> list[dict[str, Any]]:
    from destseg_bench.speed.contenders import list_contenders
    from destseg_bench.speed.latency import measure_latency

    measured = measure_latency(
        list_contenders(artifacts, device=device, threads=threads),
        images,
        batches=protocol.batches,
        rounds=protocol.rounds,
        warmup=protocol.warmup,
    )
    return [row for rows in measured for row in rows]
