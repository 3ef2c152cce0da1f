"""Curves of a test set on one page. Only this file uses matplotlib, and imports it when it draws.

Figures are objects that Agg draws. pyplot is not used: it keeps global state and may open windows.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.errors import BackendError
from destseg_deploy.evaluation.metrics import PRO_MAX_FPR, Curves, PixelMetrics
from destseg_deploy.evaluation.test_set import Evaluation, TestSet, image_roc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
WIDTH, ROW = 15.0, 4.6  # inches: 1500 px wide, a screen at its natural size
NORMAL, ANOMALOUS, LINE, GUIDE = "tab:blue", "tab:red", "black", "0.6"
BINS = 25


def require_matplotlib() -> None:
    """Make sure that curves can be drawn. Called before the test set is scored, which takes long.

    Raises:
        BackendError: If matplotlib is not installed, with the command that installs it.
    """
    try:
        import matplotlib  # noqa: F401  # asked for, not used
    except ImportError as error:
        raise BackendError(
            f"matplotlib: cannot be imported ({error}), and curves are drawn with it. "
            "Install it: pip install 'destseg-deploy[plots]'"
        ) from error


def draw_curves(
    test: TestSet,
    result: Evaluation,
    curves: Curves | None,
    *,
    threshold: float,
    threshold_name: str,
    title: str,
) -> NDArray[np.uint8]:
    """Draw image ROC, scores and scores by defect; below them pixel ROC, precision-recall, PRO.

    Args:
        test: A scored test set.
        result: Its metrics, for the titles.
        curves: Its pixel curves; None leaves the second row out.
        threshold: The image score that is marked.
        threshold_name: Its name in the legend.
        title: The line at the top.

    Returns:
        uint8 (H, W, 3) RGB, 1500 px wide.

    Raises:
        BackendError: If matplotlib is not installed.
        MetricError: If a score is not finite.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = 1 if curves is None else 2
    figure = Figure(figsize=(WIDTH, ROW * rows + 0.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)  # a folder name may contain a dollar sign
    axes = figure.subplots(rows, 3, squeeze=False)
    _image_roc(axes[0, 0], test, result, threshold)
    _histogram(axes[0, 1], test, threshold, threshold_name)
    _by_defect(axes[0, 2], test, threshold)
    if curves is not None and test.masks is not None and result.pixel is not None:
        _pixel_roc(axes[1, 0], curves, result.pixel)
        _precision_recall(axes[1, 1], curves, result.pixel, float(test.masks.mean()))
        _pro(axes[1, 2], curves, result.pixel)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # matplotlib draws a box instead
        return _pixels(figure)


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure at its own size, on white."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    with Image.open(file) as picture:
        return np.array(picture.convert("RGB"), dtype=np.uint8)


def _image_roc(axes: Axes, test: TestSet, result: Evaluation, threshold: float) -> None:
    axes.plot((0, 1), (0, 1), color=GUIDE, linestyle=":")
    axes.plot(*image_roc(test), color=LINE)
    judged = test.judged(threshold)
    false_rejects = judged.false_rejects / (result.images - result.anomalous)
    found = 1 - judged.missed / result.anomalous
    label = f"score > {threshold:.4g}:\n{false_rejects:.1%} rejected, {found:.1%} found"
    axes.plot(false_rejects, found, "o", color=ANOMALOUS, label=label, clip_on=False, zorder=3)
    axes.legend(loc="lower right")
    axes.set_title(f"Image ROC: AUROC {result.image_auroc:.4f}, F1-max {result.image_f1_max:.4f}")
    _name_axes(axes, "share of good parts rejected", "share of defects found")
    _unit_square(axes)


def _histogram(axes: Axes, test: TestSet, threshold: float, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    edges = np.histogram_bin_edges(test.scores.astype(np.float64), BINS).tolist()
    for label, chosen, colour in (
        ("normal", ~test.labels, NORMAL),
        ("anomalous", test.labels, ANOMALOUS),
    ):
        text = f"{label} ({int(chosen.sum())})"
        axes.hist(test.scores[chosen], edges, color=colour, alpha=0.6, label=text)
    axes.axvline(threshold, color=LINE, linestyle="--", label=name)
    axes.set_title("Image scores")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    _name_axes(axes, "image score", "images")


def _by_defect(axes: Axes, test: TestSet, threshold: float) -> None:
    """Draw a tick for each image in the row of its defect type, good parts at the top."""
    names = np.array([sample.defect for sample in test.samples])
    kinds = [*sorted(set(names[~test.labels])), *sorted(set(names[test.labels]))]
    for row, kind in enumerate(kinds):
        chosen = names == kind
        colour = ANOMALOUS if test.labels[chosen].any() else NORMAL
        level = np.full(int(chosen.sum()), row)
        axes.scatter(test.scores[chosen], level, marker="|", s=150, color=colour)
    axes.axvline(threshold, color=LINE, linestyle="--", zorder=0.5)
    size = min(10.0, 240 / len(kinds))
    axes.set_yticks(range(len(kinds)), kinds, fontsize=size, parse_math=False)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_title("Image scores by defect type")
    _name_axes(axes, "image score", "")


def _pixel_roc(axes: Axes, curves: Curves, pixel: PixelMetrics) -> None:
    axes.plot((0, 1), (0, 1), color=GUIDE, linestyle=":")
    axes.plot(curves.roc_fpr, curves.roc_tpr, color=LINE)
    axes.set_title(f"Pixel ROC: AUROC {pixel.auroc:.4f}")
    _name_axes(axes, "false positive rate", "true positive rate")
    _unit_square(axes)


def _precision_recall(axes: Axes, curves: Curves, pixel: PixelMetrics, share: float) -> None:
    axes.axhline(share, color=GUIDE, linestyle=":")  # the precision of a random choice
    axes.step(curves.pr_recall, curves.pr_precision, where="pre", color=LINE)
    axes.set_title(f"Pixel precision-recall: AP {pixel.ap:.4f}, F1-max {pixel.f1_max:.4f}")
    _name_axes(axes, "recall", "precision")
    _unit_square(axes)


def _pro(axes: Axes, curves: Curves, pixel: PixelMetrics) -> None:
    axes.fill_between(curves.pro_fpr, curves.pro_overlap, color=NORMAL, alpha=0.25)
    axes.plot(curves.pro_fpr, curves.pro_overlap, color=LINE)
    axes.text(PRO_MAX_FPR / 2, 0.03, f"PRO {pixel.pro:.4f}", ha="center", fontsize="large")
    axes.set_title(f"PRO@{PRO_MAX_FPR}: {pixel.pro:.4f} over {pixel.regions} regions")
    _name_axes(axes, "false positive rate", "mean region overlap")
    _unit_square(axes)
    axes.set_xlim(0, PRO_MAX_FPR)


def _name_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def _unit_square(axes: Axes) -> None:
    """Show rates from 0 to 1, with a margin so that a line along an edge stays visible."""
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
