"""Tables of results that are accuracies: runs, back ends, compared systems, half precision."""

from __future__ import annotations

from typing import Any

from destseg_bench.report.table import Table, number
from destseg_bench.tables import NOTHING

Result = dict[str, Any]
METRICS = ("image AUROC", "pixel AUROC", "pixel AP", "PRO@0.3", "IAP")
PIXEL = ("auroc", "ap", "pro", "iap")


def runs(result: Result) -> list[Table]:
    """Return the metrics of trained categories, in percent."""
    heads = ("category", "seed", "steps", "images", *METRICS, "IAP@90")
    keys = ("image_auroc", "pixel_auroc", "pixel_ap", "pro", "iap", "iap_at_90")
    rows = []
    for run in result["runs"]:
        recipe = run["recipe"]
        steps = f"{recipe['student_steps']} + {recipe['segmentation_steps']}"
        rows.append(
            [
                run["category"],
                str(run["seed"]),
                f"{steps} of {recipe['batch_size']}",
                str(run["images"]),
                *(number(_percent(run["metrics"].get(key)), 1) for key in keys),
            ]
        )
    note = "The paper's schedule is 1,000 + 4,000 steps of 32 images."
    return [Table("Accuracy in percent", heads, rows, (note,))]


def agreement(result: Result) -> list[Table]:
    """Return each artifact's metrics and its differences from PyTorch."""
    heads = ("artifact", "images", *METRICS, "score diff.", "map diff.")
    rows = []
    for row in result["rows"]:
        pixel = row["pixel"] or {}
        rows.append(
            [
                str(row["artifact"]).rsplit("/", 1)[-1],
                str(row["images"]),
                number(row["image_auroc"], 4),
                *(number(pixel.get(key), 4) for key in PIXEL),
                f"{row['score_max_abs']:.1e}",
                f"{row['map_max_abs']:.1e}",
            ]
        )
    data = str(result["data"]).rsplit("/", 2)[-2:]
    note = "Differences are the largest absolute ones to PyTorch."
    return [Table(f"Every back end on {'/'.join(data)}", heads, rows, (note,))]


def systems(result: Result) -> list[Table]:
    """Return the accuracy of trained systems, in percent, beside the paper's image AUROC."""
    heads = ("system", *METRICS, "minutes", "paper's image AUROC", "weights")
    rows, skipped = [], []
    for name, row in result["systems"].items():
        if "skipped" in row:
            skipped.append(f"{name}: {row['skipped']}")
            continue
        values = [number(_percent(row["metrics"].get(key)), 1) for key in METRICS]
        paper = row["paper"] or NOTHING
        rows.append([row["name"], *values, number(row["minutes"], 1), paper, row["weights"]])
    title = f"Systems on {result['category']}, {result['schedule']} schedule, percent"
    note = {
        "quick": "The quick schedule shows that a system works; it is not its authors', whose "
        "numbers stand beside it only to tell how far that is.",
        "paper": "The schedules of the systems' authors.",
    }[result["schedule"]]
    return [Table(title, heads, rows, (note, *skipped))]


def half(result: Result) -> list[Table]:
    """Return what half precision costs, and each FP32 part's worth."""
    differences = ("map_max_abs", "map_mean_abs", "score_max_abs")
    heads = ("variant", *METRICS[:3], "map diff.", "mean", "score diff.", "coarse", "gate")
    rows = [
        [
            row["variant"],
            *(number(row.get(key), 4) for key in ("image_auroc", "pixel_auroc", "pixel_ap")),
            *(_tiny(row.get(key)) for key in differences),
            number(_coarse(row), 2),
            _gate(row),
        ]
        for row in result["rows"]
    ]
    note = (
        "Differences are to PyTorch in FP32; coarse is the share of answers on half's grid. Half "
        "tensors are rounded as a GPU rounds them, unless the row says otherwise."
    )
    return [Table("Half precision and its FP32 parts", heads, rows, (note,))]


def _coarse(row: Result) -> float | None:
    return max(row["coarse_map"], row["coarse_scores"]) if "coarse_map" in row else None


def _gate(row: Result) -> str:
    if "refused" not in row:
        return NOTHING
    return "passes" if row["refused"] is None else "refuses"


def _tiny(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1e}"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
