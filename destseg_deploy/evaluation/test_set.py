"""A predictor on a labelled test set: scores and maps, and the metrics computed from them.

The code is the same for every back end and precision, so that their numbers can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.datasets import DataSet, open_dataset
from destseg_deploy.data.mvtec import Sample, read_masks
from destseg_deploy.errors import DataError, MetricError
from destseg_deploy.evaluation.metrics import (
    Curves,
    PixelMetrics,
    f1_max,
    image_auroc,
    pixel_curves,
    pixel_metrics,
    top_k_mean,
)
from destseg_deploy.evaluation.ranking import rank_images, rank_pixels
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import ModelSpec, exceeds

TABLE_S1 = (20, 50, 100, 200)
"""The values of T in Table S1 of the paper's supplement; 100 is the one it adopts."""

PAPER_PIXELS = 256 * 256


@dataclass(frozen=True)
class Judged:
    """Wrong verdicts of a test set.

    Attributes:
        false_rejects: Normal images judged anomalous.
        missed: Anomalous images judged normal.
    """

    false_rejects: int
    missed: int


@dataclass(frozen=True, eq=False)
class TestSet:
    """Predictions and labels of a test set, for metrics, curves and pictures.

    Attributes:
        samples: The images, in order.
        scores: float32 (N,).
        maps: float32 (N, H, W), at the size the artifact returns.
        masks: bool (N, H, W), or None for a category without ground truth.
        pixels_per_t: Pixels of a map that stand for one of a network's image of 256 x 256, in which
            the paper counts T. None for maps that show one image of the network each; with tiles, a
            map shows several.
    """

    __test__ = False  # pytest would collect a class of this name as tests

    samples: tuple[Sample, ...]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_] | None
    pixels_per_t: float | None = None

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Bool (N,): True for anomalous, by the folder's name."""
        return np.array([sample.anomalous for sample in self.samples])

    def judged(self, threshold: float) -> Judged:
        """Count the wrong verdicts at a threshold: anomalous where score > threshold."""
        found = exceeds(self.scores, threshold)
        return Judged(int((found & ~self.labels).sum()), int((~found & self.labels).sum()))

    @property
    def vanished(self) -> tuple[Path, ...]:
        """Anomalous images whose mask is so small that it is empty at the size of the maps."""
        if self.masks is None:
            return ()
        pairs = zip(self.samples, self.masks, strict=True)
        return tuple(s.image for s, mask in pairs if s.anomalous and not mask.any())


@dataclass(frozen=True)
class DefectRow:
    """How well the images of one defect type are separated from the normal ones.

    Attributes:
        defect: Name of its folder.
        images: Number of images.
        image_auroc: Of these images and all normal ones, in [0, 1].
        lowest_score: The lowest score among them, in [0, 1].
    """

    defect: str
    images: int
    image_auroc: float
    lowest_score: float


@dataclass(frozen=True)
class TopKRow:
    """Image AUROC when the score is the mean of another number of pixels than the artifact's.

    Attributes:
        t: Pixels averaged of a 256 x 256 map; T in the paper's Table S1.
        k: Pixels averaged of these maps: the same share of their pixels.
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

    @property
    def chance(self) -> float:
        """The image AUROC, in [0.6, 1], below which a model may well be guessing.

        That of random scores has the mean 0.5 and the standard deviation
        sqrt((n + m + 1) / (12 n m)) on n normal and m anomalous images (Hanley and McNeil, 1982);
        this is two of these above.
        """
        normal = self.images - self.anomalous
        spread = math.sqrt((self.images + 1) / (12 * normal * self.anomalous))
        return min(1.0, max(0.6, 0.5 + 2 * spread))

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


def score_test_set(
    predictor: Predictor,
    data: Path | str | DataSet,
    *,
    batch_size: int | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> TestSet:
    """Run a predictor over labelled images; all masks are read before the first one.

    Args:
        predictor: The model.
        data: A data set, or the folder or list that holds one.
        batch_size: Images per call; the artifact's optimum unless given.
        report: Called with the number of images done, their total, and the latest one's name.

    Raises:
        DataError: If there are no labels, an image or mask cannot be read, or only
            normal or only anomalous images are there.
    """
    data = open_dataset(data)
    samples = data.test()
    _check_both_kinds(samples, data.source)
    # First: an error in the last mask would cost the whole run.
    masks = read_masks(samples, predictor.spec.map_size)
    frames = (predictor.read(sample.image) for sample in samples)
    scores, maps = [], []
    for prediction in predictor.stream(frames, batch_size=batch_size):
        scores.append(prediction.score[0])
        maps.append(prediction.anomaly_map[0])
        report(len(maps), len(samples), samples[len(maps) - 1].image.name)
    unit = _pixels_per_t(predictor.spec)
    return TestSet(tuple(samples), np.array(scores, np.float32), np.stack(maps), masks, unit)


def _pixels_per_t(spec: ModelSpec) -> float:
    network = spec.network.height * spec.network.width
    return network / PAPER_PIXELS * math.prod(spec.map_size) / math.prod(spec.working_size)


def compute_metrics(test: TestSet) -> Evaluation:
    """Compute every metric of a scored test set.

    Raises:
        MetricError: If maps hold NaN, or no mask has a pixel at the size of the maps.
    """
    return compute_metrics_and_curves(test)[0]


def compute_metrics_and_curves(test: TestSet) -> tuple[Evaluation, Curves | None]:
    """Compute what ``compute_metrics`` does and the pixel curves.

    Returns:
        The metrics, and the curves, or None without ground truth.

    Raises:
        MetricError: As ``compute_metrics``.
    """
    labels = test.labels
    best, threshold = f1_max(test.scores, labels)
    # Sorting the pixels takes nearly all of the time, so metrics and curves share one ranking.
    ranking = None if test.masks is None else rank_pixels(test.maps, test.masks)
    result = Evaluation(
        images=len(test.samples),
        anomalous=int(labels.sum()),
        image_auroc=image_auroc(test.scores, labels),
        image_f1_max=best,
        image_f1_threshold=threshold,
        pixel=None if ranking is None else pixel_metrics(ranking),
        defects=_by_defect(test),
        vanished=tuple(str(path) for path in test.vanished),
    )
    return result, None if ranking is None else pixel_curves(ranking)


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

    The scores are computed from the maps of the test set. The artifact's own score is the mean of
    the ``top_k`` highest pixels at the network's size. Where the maps have that size, the row of
    T = 100 repeats the artifact's AUROC; at another size its scores differ slightly.

    Args:
        test: A scored test set.
        ts: Numbers of pixels, each belonging to a network's image of 256 x 256.

    Raises:
        MetricError: As ``check_ts``, or if a map holds NaN.
    """
    check_ts(ts)
    height, width = test.maps.shape[1:]
    unit = test.pixels_per_t or height * width / PAPER_PIXELS
    return tuple(_top_k_row(test, t, max(1, round(t * unit))) for t in ts)


def check_ts(ts: Sequence[int]) -> None:
    """Make sure that each T is a number of pixels of a 256 x 256 map, and is given once.

    Raises:
        MetricError: If one is not, or there is no T.
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


def _top_k_row(test: TestSet, t: int, k: int) -> TopKRow:
    # Map by map: the partial sort of all maps at once would copy all of them.
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


def _check_both_kinds(samples: Sequence[Sample], source: Path) -> None:
    kinds = {sample.anomalous for sample in samples}
    if len(kinds) < 2:
        there = "anomalous" if True in kinds else "normal"
        folders = ", ".join(dict.fromkeys(sample.defect for sample in samples))
        raise DataError(
            f"{source}: only {there} test images, labelled {folders}. Expected good and NG ones "
            "(test/good and a test/<defect>, or --good FOLDER --ng FOLDER); use destseg-predict "
            "for images without labels."
        )
