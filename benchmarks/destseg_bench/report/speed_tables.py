"""Tables of times: latency, the CPU study, fusions, training, Table S4, engine builds, C++."""

from __future__ import annotations

from functools import partial
from typing import Any

from destseg_bench.table import NOTHING, Column, Table, column, number

Result = dict[str, Any]
optional = partial(column, optional=True)
PHASES = ("student", "segmentation")

BASE = "destseg-reference"
"""What the ratios of Table S4 are relative to: DeSTSeg as the paper measured it."""

PAPER_MINUTES, PAPER_MS = 51.2, 9.4
"""Of the paper's DeSTSeg."""


def latency(result: Result) -> list[Table]:
    """Return each contender's times in milliseconds per call."""
    title = f"Latency on {_machine(result)}, ms per call"
    columns: tuple[Column, ...] = (
        column("contender", "name"),
        column("batch", "batch"),
        ("streams", lambda row: str(row.get("streams", 1))),
        column("frames", "origin"),
        optional("ms", "median", 2),
        optional("p90", "p90", 2),
        optional("p99", "p99", 2),
        optional("images/s", "images_per_second", 1),
        optional("faster", "times_faster", 2, "x"),
    )
    rows = result["rows"]
    if any("matrix_share" in row for row in rows):
        columns += (_share("of matrix rate", "matrix_share"), _share("of memory", "memory_share"))
    skipped = [f"{row['name']} skipped: {row['skipped']}" for row in rows if "skipped" in row]
    return [Table.of(title, columns, rows, tuple(dict.fromkeys(skipped)))]


def rates(result: Result) -> list[Table]:
    """Return what a device can do at best."""
    columns = (
        column("device", "device"),
        column("precision", "precision"),
        column("TFLOP/s", "tflops", 2),
        column("images/s at most", "images_per_second", 1),
        column("memory GB/s", "memory_gb_per_second", 1),
        optional("to the device", "to_device_gb_per_second", 1),
        optional("to the host", "to_host_gb_per_second", 1),
    )
    return [Table.of(f"Bounds of {_machine(result)}", columns, result["rows"])]


def layers(result: Result) -> list[Table]:
    """Return where the time of an artifact goes, and what the CPU can do at best."""
    columns = (
        column("layers", "name"),
        ("number", lambda row: str(row["count"])),
        column("ms", "milliseconds", 2),
        _share("of the time", "share"),
        ("in", lambda row: ", ".join(row["precisions"])),
        optional("GMAC/s", "gmac_per_second", 0),
        _share("of the CPU's rate", "rate_share"),
    )
    whole = sum(row["milliseconds"] for row in result["rows"])
    title = (
        f"{result['artifact']} in {result['back_end']}, batch {result['batch']}, on "
        f"{_machine(result)}: {whole:.1f} ms, profiled"
    )
    return [*cpu_rates(result), Table.of(title, columns, result["rows"])]


def cpu_rates(result: Result) -> list[Table]:
    """Return what a CPU multiplies at best in each precision, if that was measured."""
    columns = (
        column("precision", "precision"),
        column("library", "library"),
        column("fastest work", "work"),
        column("GMAC/s", "gmac_per_second", 0),
    )
    rows = result.get("rates", [])
    return [Table.of(f"The CPU at best ({_machine(result)})", columns, rows)] if rows else []


def _share(head: str, key: str) -> Column:
    return head, lambda row: number(100 * row[key], 1, " %") if key in row else NOTHING


def cpu(result: Result) -> list[Table]:
    """Return speed, cold start, memory and accuracy of each contender on a CPU."""
    columns = [column("setup", "name")]
    for batch in sorted({row["batch"] for row in result["latency"]}):
        columns += [
            optional(f"ms, batch {batch}", f"median {batch}", 1),
            optional("p90", f"p90 {batch}", 1),
            optional("faster", f"faster {batch}", 2, "x"),
        ]
        if result.get("rates"):
            columns += [_share("of the CPU's rate", f"rate share {batch}")]
    columns += [
        optional("start s", "seconds", 2),
        optional("MiB", "resident_mib", 0),
        optional("image AUROC", "image AUROC", 4),
        optional("pixel AP", "pixel AP", 4),
        optional("PRO", "PRO@0.3", 4),
        optional("IAP", "IAP", 4),
    ]
    names = dict.fromkeys(row["name"] for row in result["latency"])
    rows = [_cpu_row(result, name) for name in names]
    note = (
        "Milliseconds per image, from pixels to map and score, interleaved. Faster: than PyTorch "
        "eager. Start: from starting a fresh process to its first answer. MiB: the largest "
        "resident memory of that process."
    )
    if result.get("rates"):
        note += (
            " The CPU's rate: what it multiplies at best in the precision of the row; the share "
            "counts the fused graph's arithmetic and the fastest call."
        )
    return [
        *cpu_rates(result),
        Table.of(
            f"DeSTSeg on a CPU ({_machine(result)}), {result['data']}", columns, rows, (note,)
        ),
    ]


def _cpu_row(result: Result, name: str) -> Result:
    row = {"name": name, **result.get("start", {}).get(name, {})}
    row |= result.get("accuracy", {}).get(name, {})
    for timed in result["latency"]:
        if timed["name"] == name and "median" in timed:
            batch = timed["batch"]
            row |= {f"{key} {batch}": timed[key] / batch for key in ("median", "p90")}
            row[f"faster {batch}"] = timed["times_faster"]
            if "rate_share" in timed:
                row[f"rate share {batch}"] = timed["rate_share"]
    return row


def fusions(result: Result) -> list[Table]:
    """Return a table for each batch size: each graph's time, and its ratio to the fused one's."""
    note = (
        "Ratio: time without the fusion divided by the time with all fusions, in the same round. "
        "Below 1 the fusion costs time; where the interval holds 1, no difference was seen."
    )
    columns = [column("graph", "contender"), column("GMAC", "gmac", 2)]
    for back_end in dict.fromkeys(row["back_end"] for row in result["rows"]):
        columns += [
            optional(f"{back_end} ms", f"{back_end} ms", 1),
            optional(f"{back_end} ratio", f"{back_end} ratio", 3),
            optional(f"{back_end} 95 %", f"{back_end} 95 %"),
        ]
    tables = []
    for batch in dict.fromkeys(row["batch"] for row in result["rows"]):
        title = f"What each fusion is worth ({_machine(result)}), batch {batch}"
        rows = [row for row in result["rows"] if row["batch"] == batch]
        tables.append(Table.of(title, columns, _graphs(rows), (note,)))
    return tables


def _graphs(rows: list[Result]) -> list[Result]:
    """Return a row for each graph, with what was measured on every back end."""
    graphs: dict[str, Result] = {}
    for row in rows:
        ratio, name = row["ratio"], row["back_end"]
        graphs.setdefault(row["contender"], dict(row)).update(
            {
                f"{name} ms": row["milliseconds"]["median"],
                f"{name} ratio": ratio["median"],
                f"{name} 95 %": f"{ratio['low']:.3f} to {ratio['high']:.3f}",
            }
        )
    return list(graphs.values())


def training(result: Result) -> list[Table]:
    """Return seconds per step of the lean training beside the reference's loop."""
    columns = (
        column("loop", "contender"),
        column("precision", "precision"),
        *(made for phase in PHASES for made in _phase(phase)),
        column("schedule min", "projected_minutes", 0),
        column("faster", "times_faster", 2, "x"),
    )
    what = f"{result['batch_size']} images of {result['size']} px a step, {_machine(result)}"
    note = (
        "Seconds per step, medians with the lowest and the highest, interleaved. The schedule is "
        "the paper's 1,000 + 4,000 steps, projected; the paper takes 32 images a step."
    )
    return [Table.of(f"Training: {what}", columns, result["rows"], (note,))]


def _phase(name: str) -> tuple[Column, Column]:
    """Return the columns of a phase: seconds per step with their spread, and how much faster."""

    def seconds(row: Result) -> str:
        phase = row[name]
        return f"{phase['seconds_per_step']:.2f} ({phase['lowest']:.2f}-{phase['highest']:.2f})"

    return (f"{name} s", seconds), ("faster", lambda row: f"{row[name]['times_faster']:.2f}x")


def table_s4(result: Result) -> list[Table]:
    """Return Table S4 beside the paper's, the stages of a call, and the stages of the trainings."""
    systems = {n: row for n, row in result["systems"].items() if "skipped" not in row}
    where = f"{_machine(result)}, {result['threads']} threads, {result['category']} with "
    where += f"{result['normal_images']} normal images"
    notes = (
        "Ratios are to DeSTSeg as the reference computes it; the paper's times are of one V100, "
        "its DeSTSeg is the reference. Minutes are projected from steps of the paper's schedules.",
        *skipped_systems(result),
    )
    columns = _s4_columns(systems.get(BASE, systems.get("destseg", {})))
    first = Table.of(f"Table S4 on {where}", columns, systems.values(), notes)
    artifacts = latency({**result, "rows": result["artifacts"]}) if "artifacts" in result else []
    return [first, _stages(systems), *_training_stages(systems), *artifacts]


def skipped_systems(result: Result) -> list[str]:
    """Return a line for each system that could not be opened, with the reason."""
    rows = result["systems"].items()
    return [f"{name} skipped: {row['skipped']}" for name, row in rows if "skipped" in row]


def _s4_columns(base: Result) -> tuple[Column, ...]:
    """Return the columns of Table S4; a dash where nothing was measured or the paper has none.

    Args:
        base: The row that the ratios are relative to; empty where it was not measured.
    """

    def name(row: Result) -> str:
        return f"{row['name']}{', random weights' if row['weights'] == 'random' else ''}"

    def model(row: Result) -> float | None:
        return milliseconds(row, "model")

    return (
        ("system", name),
        column("M params", "parameters_counted", 1),
        column("GMAC", "gmacs_counted", 1),
        ("train min", lambda row: number(minutes(row), 1)),
        ("ratio", lambda row: _ratio(minutes(row), minutes(base))),
        *_paper("training_minutes", PAPER_MINUTES),
        ("ms", lambda row: number(model(row), 1)),
        ("ratio", lambda row: _ratio(model(row), model(base))),
        *_paper("inference_ms", PAPER_MS),
        ("file to answer ms", lambda row: number(milliseconds(row, "end to end"), 1)),
    )


def minutes(row: Result) -> float | None:
    """Return a system's training time in minutes; None if it was not timed."""
    training = row.get("training")
    return None if training is None else float(training["minutes"])


def milliseconds(row: Result, stage: str, batch: int = 1) -> float | None:
    """Return the median of a part, per image, by the host's clock; None if it was not timed."""
    timed = row.get("inference", {}).get(str(batch))
    return None if timed is None else float(timed["wall"][stage]["median"])


def _ratio(value: float | None, base: float | None) -> str:
    return NOTHING if value is None or not base else f"{value / base:.2f}x"


def _paper(key: str, base: float) -> tuple[Column, Column]:
    """Return columns of a number as printed, which may be a bound such as ``> 11.3``, and ratio."""

    def printed(row: Result) -> str:
        text = str((row["paper"] or {}).get(key, "-"))
        return NOTHING if text == "-" else text

    def ratio(row: Result) -> str:
        bound, _, value = printed(row).rpartition(" ")
        return NOTHING if value == NOTHING else f"{bound} {float(value) / base:.2f}x".strip()

    return ("paper", printed), ("ratio", ratio)


def _stages(systems: Result) -> Table:
    names = ("decode", "prepare", "copy in", "network", "answer", "copy out", "end to end")
    columns = (
        column("system", "system"),
        column("batch", "batch"),
        *(column(name, name, 2) for name in names),
        column("p90 of end to end", "p90", 2),
    )
    rows = [
        {
            "system": row["name"],
            "batch": batch,
            **{name: milliseconds(row, name, int(batch)) for name in names},
            "p90": clocks["wall"]["end to end"]["p90"],
        }
        for row in systems.values()
        for batch, clocks in row["inference"].items()
    ]
    return Table.of("Milliseconds per image by stage, medians", columns, rows)


def _training_stages(systems: Result) -> list[Table]:
    columns = (
        column("system", "system"),
        column("stage", "name"),
        column("steps", "steps"),
        column("images", "images"),
        ("s per step", lambda stage: f"{stage['seconds_per_step']:.3g}"),
        ("lowest", lambda stage: f"{stage['lowest']:.3g}"),
        ("highest", lambda stage: f"{stage['highest']:.3g}"),
        column("timed", "timed"),
    )
    rows = [
        {**stage, "system": row["name"]}
        for row in systems.values()
        for stage in (row["training"] or {"stages": []})["stages"]
    ]
    return [Table.of("Steps of the trainings", columns, rows)] if rows else []


def builds(result: Result) -> list[Table]:
    """Return size, time and half convolutions of each engine built, or why it was refused."""
    columns = (
        ("input", lambda row: "x".join(map(str, row["input"]))),
        column("precision", "precision"),
        ("targets", lambda row: ", ".join(row["targets"])),
        ("engine MB", lambda row: number(row["engine_bytes"] / 1e6, 1) if _built(row) else NOTHING),
        optional("parse s", "parse_seconds", 2),
        optional("build s", "build_seconds", 2),
        (
            "half convolutions",
            lambda row: (
                f"{row['half_convolutions']} of {row['convolutions']}"
                if _built(row)
                else f"refused: {row['refused']}"
            ),
        ),
    )
    title = f"Engines by {result['builder']}, batch {result['batch']}"
    note = "Built without a GPU; none of them was run."
    return [Table.of(title, columns, result["rows"], (note,))]


def _built(row: Result) -> bool:
    return "refused" not in row


def cpp_overhead(result: Result) -> list[Table]:
    """Return what the C interface adds to its back end's own call."""
    columns = (
        ("network", lambda row: f"{row['artifact']}, {'x'.join(map(str, row['network']))}"),
        column("back end", "backend"),
        column("threads", "threads"),
        column("calls", "calls"),
        ("ms", lambda row: number(row["milliseconds"]["bare"]["p50"], 3)),
        column("overhead ms", "overhead_ms", 4),
        column("± se", "overhead_ms_standard_error", 4),
        column("%", "overhead_percent", 3),
        column("± se", "overhead_percent_standard_error", 3),
    )
    return [Table.of("C interface: overhead over the bare back end", columns, result["rows"])]


def _machine(result: Result) -> str:
    environment = result["environment"]
    on_gpu = str(result.get("device", "cpu")).startswith("cuda")
    return f"{environment['gpu'] if on_gpu else environment['cpu']}, {environment['cores']} cores"
