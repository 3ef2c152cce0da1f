"""Evaluation: any predictor on a labelled folder; the same code for every back end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.images import read_image, read_mask
from destseg_deploy.data.mvtec import Sample, list_test
from destseg_deploy.errors import DataError, MetricError
from destseg_deploy.metrics import (
    Curves,
    PixelMetrics,
    f1_max,
    image_auroc,
    pixel_metrics,
    pixel_metrics_and_curves,
    top_k_mean,
)
from destseg_deploy.ranking import rank_images
from destseg_deploy.runtime.base import Prediction

TABLE_S1 = (20, 50, 100, 200)
"""The values of T in Table S1 of the paper's supplement; 100 is the one it adopts."""

PAPER_PIXELS = 256 * 256
PRO_MAX_FPR = 0.3


class Scorer(Protocol):
    """What evaluation needs of a Predictor."""

    def stream(
        self,
        frames: Iterator[NDArray[np.uint8]],
        *,
        source_maps: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Prediction]:
        """Score frames one after another; see ``Predictor.stream``."""


@dataclass(frozen=True)
class Judged:
    """Wrong verdicts of a test set.

    Attributes:
        false_rejects: Normal images judged anomalous.
        missed: Anomalous images judged normal.
    """

    false_rejects: int
    missed: int


@dataclass(frozen=True)
class TestSet:
    """Predictions and labels of a test set, kept for metrics, curves and pictures.

    Attributes:
        samples: The images, in order.
        scores: float32 (N,).
        maps: float32 (N, H, W), at the size the artifact returns.
        masks: bool (N, H, W), or None for a category without ground truth.
    """

    __test__ = False  # the name is no pytest class

    samples: tuple[Sample, ...]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_] | None

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Bool (N,): True for anomalous, by the folder's name."""
        return np.array([sample.anomalous for sample in self.samples])

    def judged(self, threshold: float) -> Judged:
        """Count the wrong verdicts at a threshold: anomalous where score > threshold."""
        found = self.scores > threshold
        return Judged(int((found & ~self.labels).sum()), int((~found & self.labels).sum()))

    @property
    def vanished(self) -> tuple[Path, ...]:
        """Anomalous images whose mask has no pixel left at the size of the maps."""
        if self.masks is None:
            return ()
        pairs = zip(self.samples, self.masks, strict=True)
        return tuple(s.image for s, mask in pairs if s.anomalous and not mask.any())


@dataclass(frozen=True)
class DefectRow:
    """How well one defect type is told from the normal images.

    Attributes:
        defect: Name of its folder.
        images: Number of images.
        image_auroc: Of these against all normal images.
        lowest_score: The score of the one that is hardest to see.
    """

    defect: str
    images: int
    image_auroc: float
    lowest_score: float


@dataclass(frozen=True)
class TopKRow:
    """Image AUROC when the score is the mean of other than the adopted number of pixels.

    Attributes:
        t: Pixels averaged of a 256 x 256 map; T in the paper's Table S1.
        k: Pixels averaged here: the same share of the map.
        image_auroc: In [0, 1].
    """

    t: int
    k: int
    image_auroc: float


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a test set, each in [0, 1].

    Attributes:
        images: Number of images.
        anomalous: How many of them are anomalous.
        image_auroc: Area under the ROC curve of image scores.
        image_f1_max: Best F1 of image scores.
        image_f1_threshold: The score above which an image is then anomalous.
        pixel: Metrics of the maps, or None without ground truth.
        defects: A row for each defect type.
        vanished: Anomalous images whose mask is empty at the size of the maps.
    """

    images: int
    anomalous: int
    image_auroc: float
    image_f1_max: float
    image_f1_threshold: float
    pixel: PixelMetrics | None
    defects: tuple[DefectRow, ...] = ()
    vanished: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, float]]:
        """Return names and values for a table, in the order of the paper's."""
        rows = [("image AUROC", self.image_auroc), ("image F1-max", self.image_f1_max)]
        if self.pixel is not None:
            rows += [
                ("pixel AUROC", self.pixel.auroc),
                ("pixel AP", self.pixel.ap),
                ("PRO@0.3", self.pixel.pro),
                ("IAP", self.pixel.iap),
                ("IAP@90", self.pixel.iap_at_recall),
            ]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def score_images(
    scorer: Scorer, images: Sequence[Path], *, report: Callable[[int], None] = lambda done: None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score image files: the scores and the largest map value of each, float32 (N,) both.

    Args:
        scorer: A Predictor.
        images: Image files.
        report: Called with the number of images done.
    """
    scores, peaks = [], []
    for prediction in scorer.stream(map(read_image, images)):
        scores.append(prediction.score[0])
        peaks.append(prediction.anomaly_map.max())
        report(len(scores))
    return np.array(scores, np.float32), np.array(peaks, np.float32)


def score_test_set(
    scorer: Scorer,
    category: Path,
    *,
    batch_size: int | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> TestSet:
    """Run a predictor over a category's test images.

    Args:
        scorer: A Predictor.
        category: A folder in the MVTec AD layout.
        batch_size: Images per call; the artifact's optimum unless given.
        report: Called with the number of images done, their total, and the latest one's name.

    Raises:
        DataError: If the folder is not as expected, an image or mask cannot be read, or only
            normal or only anomalous images are there.
    """
    samples = list_test(category)
    _check_both_kinds(samples, category)
    shapes: list[tuple[int, int]] = []

    def frames() -> Iterator[NDArray[np.uint8]]:
        for sample in samples:
            frame = read_image(sample.image)
            shapes.append((frame.shape[0], frame.shape[1]))
            yield frame

    scores, maps = [], []
    for prediction in scorer.stream(frames(), batch_size=batch_size):
        scores.append(prediction.score[0])
        maps.append(prediction.anomaly_map[0])
        report(len(maps), len(samples), samples[len(maps) - 1].image.name)
    stacked = np.stack(maps)
    return TestSet(
        tuple(samples),
        np.array(scores, np.float32),
        stacked,
        _masks(samples, shapes, stacked.shape),
    )


def compute_metrics(test: TestSet) -> Evaluation:
    """Compute every metric of a scored test set.

    Raises:
        MetricError: If maps hold NaN, or no mask has a pixel at the size of the maps.
    """
    pixel = None
    if test.masks is not None:
        pixel = pixel_metrics(test.maps, test.masks, pro_max_fpr=PRO_MAX_FPR)
    return _evaluation(test, pixel)


def compute_metrics_and_curves(test: TestSet) -> tuple[Evaluation, Curves | None]:
    """Compute what ``compute_metrics`` does and the pixel curves, from one sort of the pixels.

    Returns:
        The metrics, and the curves, or None without ground truth.

    Raises:
        MetricError: As ``compute_metrics``.
    """
    if test.masks is None:
        return _evaluation(test, None), None
    pixel, curves = pixel_metrics_and_curves(test.maps, test.masks, pro_max_fpr=PRO_MAX_FPR)
    return _evaluation(test, pixel), curves


def image_roc(test: TestSet) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ROC curve of the image scores, to be joined with straight lines.

    Returns:
        False and true positive rate, float64 (P,) both, from (0, 0) to (1, 1).

    Raises:
        MetricError: If a score is not finite.
    """
    ranking = rank_images(test.scores, test.labels)
    false_positives, true_positive_rate = ranking.staircase(ranking.recall)
    return false_positives / ranking.normal.size, true_positive_rate


def sweep_top_k(test: TestSet, ts: Sequence[int] = TABLE_S1) -> tuple[TopKRow, ...]:
    """Compute the image AUROC for other image scores, as the paper's Table S1 does.

    The scores come from the maps at hand. The artifact's own score is the mean over its
    ``top_k`` pixels of the map at the network's size: where the maps have that size, the row of
    the T it was trained with (100) repeats the artifact's AUROC. Maps of another size give
    slightly other scores, from the same share of their pixels.

    Args:
        test: A scored test set.
        ts: Numbers of pixels, each belonging to a map of 256 x 256.

    Raises:
        MetricError: As ``check_ts``, or if a map holds NaN.
    """
    check_ts(ts)
    height, width = test.maps.shape[1:]
    return tuple(_top_k_row(test, t, max(1, round(t * height * width / PAPER_PIXELS))) for t in ts)


def check_ts(ts: Sequence[int]) -> None:
    """Make sure that each T is a number of pixels of a 256 x 256 map, and that none repeats.

    Raises:
        MetricError: If not, or if there is none.
    """
    if not ts:
        raise MetricError("T: no value. Pass at least one, such as 100.")
    for i, t in enumerate(ts):
        if not 1 <= t <= PAPER_PIXELS:
            raise MetricError(
                f"T = {t}: expected 1 to {PAPER_PIXELS}, the pixels of a 256 x 256 map; "
                "it is scaled to the size of other maps."
            )
        if t in ts[:i]:
            raise MetricError(f"T = {t}: given twice. Pass each value once.")


def _evaluation(test: TestSet, pixel: PixelMetrics | None) -> Evaluation:
    labels = test.labels
    best, threshold = f1_max(test.scores, labels)
    return Evaluation(
        images=len(test.samples),
        anomalous=int(labels.sum()),
        image_auroc=image_auroc(test.scores, labels),
        image_f1_max=best,
        image_f1_threshold=threshold,
        pixel=pixel,
        defects=_by_defect(test),
        vanished=tuple(str(path) for path in test.vanished),
    )


def _top_k_row(test: TestSet, t: int, k: int) -> TopKRow:
    # Map by map, for the partial sort of all maps at once would copy them.
    scores = np.concatenate([top_k_mean(anomaly_map[None], k) for anomaly_map in test.maps])
    return TopKRow(t, k, image_auroc(scores, test.labels))


def _by_defect(test: TestSet) -> tuple[DefectRow, ...]:
    names = np.array([sample.defect for sample in test.samples])
    normal = ~test.labels
    rows = []
    for defect in sorted(set(names[test.labels])):
        chosen = names == defect
        scores = test.scores[chosen | normal]
        auroc = image_auroc(scores, chosen[chosen | normal])
        rows.append(
            DefectRow(str(defect), int(chosen.sum()), auroc, float(test.scores[chosen].min()))
        )
    return tuple(rows)


def _check_both_kinds(samples: Sequence[Sample], category: Path) -> None:
    kinds = {sample.anomalous for sample in samples}
    if len(kinds) < 2:
        there = "anomalous" if True in kinds else "normal"
        raise DataError(
            f"{category / 'test'}: only {there} images. Expected test/good and at least one "
            "test/<defect>; use destseg-predict for images without labels."
        )


def _masks(
    samples: Sequence[Sample], shapes: Sequence[tuple[int, int]], size: tuple[int, ...]
) -> NDArray[np.bool_] | None:
    if all(sample.mask is None for sample in samples):
        return None
    masks = np.zeros(size, np.bool_)
    for i, sample in enumerate(samples):
        if sample.mask is not None:
            masks[i] = read_mask(sample.mask, shapes[i], (size[1], size[2]))
    return masks
