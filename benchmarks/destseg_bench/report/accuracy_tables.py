"""Tables of accuracies: trained runs, agreement of artifacts, systems, half precision, INT8."""

from __future__ import annotations

from typing import Any

from destseg_bench.report.speed_tables import skipped_systems
from destseg_bench.table import NOTHING, Column, Table, column, number

Result = dict[str, Any]
METRICS = {
    "image AUROC": "image_auroc",
    "pixel AUROC": "pixel_auroc",
    "pixel AP": "pixel_ap",
    "PRO@0.3": "pro",
    "IAP": "iap",
}
"""Heads of the metrics, and their keys in a row."""


def runs(result: Result) -> list[Table]:
    """Return the metrics of trained categories, in percent."""
    columns = (
        column("category", "category"),
        column("seed", "seed"),
        ("steps", _schedule),
        column("images", "images"),
        *(_percent(head, key) for head, key in METRICS.items()),
        _percent("IAP@90", "iap_at_90"),
    )
    note = "The paper's schedule is 1,000 + 4,000 steps of 32 images."
    return [Table.of("Accuracy in percent", columns, result["runs"], (note,))]


def agreement(result: Result) -> list[Table]:
    """Return each artifact's metrics in [0, 1] and its differences from the first one."""
    pixel = {"pixel AUROC": "auroc", "pixel AP": "ap", "PRO@0.3": "pro", "IAP": "iap"}
    columns = (
        column("artifact", "artifact"),
        column("images", "images", optional=True),
        column("image AUROC", "image_auroc", 4, optional=True),
        *(_pixel_metric(head, key) for head, key in pixel.items()),
        _difference("score diff.", "score_max_abs"),
        _difference("map diff.", "map_max_abs"),
    )
    data = "/".join(str(result["data"]).rsplit("/", 2)[-2:])
    rows = result["rows"]
    runs = [row for row in rows if "skipped" not in row]
    # The first may have failed; then the differences are to the one that ran first.
    first = "PyTorch" if runs[:1] == rows[:1] else str(runs[0]["artifact"])
    notes = [f"Differences are the largest absolute ones to {first}."]
    notes += [f"{row['artifact']} skipped: {row['skipped']}" for row in rows if "skipped" in row]
    notes += [f"{row['artifact']}: {row['other_scores']}." for row in rows if "other_scores" in row]
    return [Table.of(f"Every back end on {data}", columns, rows, tuple(notes))]


def systems(result: Result) -> list[Table]:
    """Return the accuracy of trained systems, in percent, beside the paper's image AUROC."""
    columns = (
        column("system", "name"),
        *(_percent(head, head) for head in METRICS),
        column("minutes", "minutes", 1),
        ("paper's image AUROC", lambda row: row["paper"] or NOTHING),
        column("weights", "weights"),
    )
    measured = [row for row in result["systems"].values() if "skipped" not in row]
    note = {
        "quick": "The quick schedule only shows that a system works. The paper's numbers are "
        "of the authors' full schedules.",
        "paper": "The schedules of the systems' authors.",
    }[result["schedule"]]
    title = f"Systems on {result['category']}, {result['schedule']} schedule, percent"
    return [Table.of(title, columns, measured, (note, *skipped_systems(result)))]


def half(result: Result) -> list[Table]:
    """Return what half precision costs, and what each part that stays in FP32 saves of it."""
    columns = (
        column("variant", "variant"),
        *(
            column(head, METRICS[head], 4, optional=True)
            for head in ("image AUROC", "pixel AUROC", "pixel AP")
        ),
        _difference("map diff.", "map_max_abs"),
        _difference("mean", "map_mean_abs"),
        _difference("score diff.", "score_max_abs"),
        ("coarse", _coarse),
        ("gate", _gate),
    )
    note = (
        "Differences are to PyTorch in FP32. Coarse is the share of answers on the grid of FP16. "
        "Half tensors are rounded as a GPU rounds them, unless the row says otherwise. The gate is "
        "the check that an export must pass."
    )
    return [Table.of("Half precision and its FP32 parts", columns, result["rows"], (note,))]


def int8(result: Result) -> list[Table]:
    """Return what INT8 costs with more and fewer layers in FP32, biases corrected or not."""
    columns = (
        column("layers in FP32", "in_float32"),
        ("of the arithmetic", lambda row: f"{100 * row['float32_share']:.1f} %"),
        column("biases", "biases", optional=True),
        column("image AUROC", METRICS["image AUROC"], 4),
        column("pixel AP", METRICS["pixel AP"], 4),
        column("scores move by, rms", "score_rms", 3, optional=True),
        column("a pixel moves by, at most", "map_max_abs", 3, optional=True),
    )
    note = (
        f"{result['images']} images, which neither calibrated nor chose anything, in ONNX Runtime "
        f"on the CPU; calibrated on {result['calibrated_on']} others, half of them with drawn "
        "anomalies. The first row is float32."
    )
    return [Table.of("INT8, its layers in FP32 and its biases", columns, result["rows"], (note,))]


def _percent(head: str, key: str) -> Column:
    def make(row: Result) -> str:
        value = row["metrics"].get(key)
        return number(None if value is None else 100 * value, 1)

    return head, make


def _pixel_metric(head: str, key: str) -> Column:
    # Without masks there are no pixel metrics at all.
    return head, lambda row: number((row.get("pixel") or {}).get(key), 4)


def _difference(head: str, key: str) -> Column:
    return head, lambda row: NOTHING if row.get(key) is None else f"{row[key]:.1e}"


def _schedule(run: Result) -> str:
    recipe = run["recipe"]
    steps = f"{recipe['student_steps']} + {recipe['segmentation_steps']}"
    return f"{steps} of {recipe['batch_size']}"


def _coarse(row: Result) -> str:
    return (
        number(max(row["coarse_map"], row["coarse_scores"]), 2) if "coarse_map" in row else NOTHING
    )


def _gate(row: Result) -> str:
    if "refused" not in row:
        return NOTHING
    return "OK" if row["refused"] is None else "NG"
