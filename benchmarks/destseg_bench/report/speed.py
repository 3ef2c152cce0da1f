"""Tables of results that are times: Table S4, latency, the CPU study, training, C++."""

from __future__ import annotations

from typing import Any

from destseg_bench.report.table import Table, number
from destseg_bench.s4_text import HEADS, milliseconds, s4_rows

Result = dict[str, Any]


def table_s4(result: Result) -> list[Table]:
    """Return Table S4 beside the paper's, the stages of a call, and the training's stages."""
    systems = {n: row for n, row in result["systems"].items() if "skipped" not in row}
    skipped = [f"{n}: {row['skipped']}" for n, row in result["systems"].items() if n not in systems]
    where = f"{_machine(result)}, {result['threads']} threads, {result['category']} with "
    where += f"{result['normal_images']} normal images"
    notes = (
        "Ratios are to DeSTSeg as the reference computes it; the paper's times are of one V100, "
        "its DeSTSeg is the reference. Minutes are projected from steps of the paper's schedules.",
        *skipped,
    )
    first = Table(f"Table S4 on {where}", tuple(HEADS), s4_rows(systems), notes)
    return [first, _stages(systems), *_training_stages(systems)]


def _stages(systems: Result) -> Table:
    names = ("decode", "prepare", "copy in", "network", "answer", "copy out", "end to end")
    rows = []
    for row in systems.values():
        for batch in row["inference"]:
            cells = [number(milliseconds(row, name, int(batch)), 2) for name in names]
            rows.append([row["name"], batch, *cells, _spread(row, batch)])
    heads = ("system", "batch", *names, "p90 of end to end")
    return Table("Milliseconds per image by stage, medians", heads, rows)


def _spread(row: Result, batch: str) -> str:
    return number(row["inference"][batch]["wall"]["end to end"]["p90"], 2)


def _training_stages(systems: Result) -> list[Table]:
    heads = ("system", "stage", "steps", "images", "s per step", "lowest", "highest", "timed")
    rows = [
        [
            row["name"],
            stage["name"],
            str(stage["steps"]),
            str(stage["images"]),
            *(f"{stage[key]:.3g}" for key in ("seconds_per_step", "lowest", "highest")),
            str(stage["timed"]),
        ]
        for row in systems.values()
        for stage in (row["training"] or {"stages": []})["stages"]
    ]
    return [Table("Steps of the trainings", heads, rows)] if rows else []


def latency(result: Result) -> list[Table]:
    """Return each contender's times."""
    heads = ("contender", "batch", "streams", "frames", "ms", "p90", "p99", "images/s", "faster")
    rows = [
        [
            row["name"],
            str(row["batch"]),
            str(row.get("streams", 1)),
            row["origin"],
            *(number(row.get(key), 2) for key in ("median", "p90", "p99")),
            number(row.get("images_per_second"), 1),
            number(row.get("times_faster"), 2, "x") if "skipped" not in row else row["skipped"],
        ]
        for row in result["rows"]
    ]
    return [Table(f"Latency on {_machine(result)}, ms per call", heads, rows)]


def cpu(result: Result) -> list[Table]:
    """Return speed, cold start, memory and accuracy of each setup on a CPU."""
    batches = sorted({row["batch"] for row in result["latency"]})
    heads = ["setup"]
    for batch in batches:
        heads += [f"ms, batch {batch}", "p90", "faster"]
    heads += ["start s", "MiB", "image AUROC", "pixel AP", "PRO", "IAP"]
    names = dict.fromkeys(row["name"] for row in result["latency"])
    rows = [_cpu_row(result, name, batches) for name in names]
    note = (
        "Milliseconds per image, from pixels to map and score, interleaved; faster than PyTorch "
        "eager. Start: a fresh process to its first answer, and its largest resident memory."
    )
    where = f"{result['environment']['cpu']}, {result['environment']['cores']} cores"
    return [Table(f"DeSTSeg on a CPU ({where}), {result['data']}", tuple(heads), rows, (note,))]


def _cpu_row(result: Result, name: str, batches: list[int]) -> list[str]:
    timed = {row["batch"]: row for row in result["latency"] if row["name"] == name}
    cells = [name]
    for batch in batches:
        row = timed[batch]
        cells += [
            number(row["median"] / batch if "median" in row else None, 1),
            number(row["p90"] / batch if "p90" in row else None, 1),
            number(row.get("times_faster"), 2, "x"),
        ]
    start = result.get("start", {}).get(name, {})
    metrics = result.get("accuracy", {}).get(name, {})
    cells += [number(start.get("seconds"), 2), number(start.get("resident_mib"), 0)]
    return cells + [
        number(metrics.get(key), 4) for key in ("image AUROC", "pixel AP", "PRO@0.3", "IAP")
    ]


def training(result: Result) -> list[Table]:
    """Return seconds per step of the lean training beside the reference's loop."""
    heads = ("loop", "precision", "student s", "faster", "segmentation s", "faster", "schedule")
    rows = [
        [
            row["contender"],
            row["precision"],
            *(
                cell
                for phase in ("student", "segmentation")
                for cell in (
                    number(row[phase]["seconds_per_step"], 2),
                    number(row[phase]["times_faster"], 2, "x"),
                )
            ),
            number(row["times_faster"], 2, "x"),
        ]
        for row in result["rows"]
    ]
    what = f"{result['batch_size']} images of {result['size']} px a step, {_machine(result)}"
    note = (
        "Seconds per step, medians, interleaved. The last column is the paper's 1,000 + 4,000 "
        "steps, projected."
    )
    return [Table(f"Training: {what}", heads, rows, (note,))]


def cpp_overhead(result: Result) -> list[Table]:
    """Return what the C interface adds to its back end's own call."""
    heads = ("network", "back end", "threads", "calls", "ms", "overhead ms", "± se", "%", "± se")
    rows = [
        [
            f"{row['artifact']}, {'x'.join(map(str, row['network']))}",
            row["backend"],
            str(row["threads"]),
            str(row["calls"]),
            number(row["milliseconds"]["bare"]["p50"], 3),
            number(row["overhead_ms"], 4),
            number(row["overhead_ms_standard_error"], 4),
            number(row["overhead_percent"], 3),
            number(row["overhead_percent_standard_error"], 3),
        ]
        for row in result["rows"]
    ]
    return [Table("C interface: overhead over the bare back end", heads, rows)]


def _machine(result: Result) -> str:
    environment = result["environment"]
    on_gpu = str(result.get("device", "cpu")).startswith("cuda")
    name = environment["gpu"] if on_gpu else environment["cpu"]
    return f"{name}, {environment['cores']} cores"
