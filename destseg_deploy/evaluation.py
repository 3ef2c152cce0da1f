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
from destseg_deploy.errors import DataError
from destseg_deploy.metrics import PixelMetrics, f1_max, image_auroc, pixel_metrics
from destseg_deploy.runtime.base import Prediction


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
    labels = test.labels
    best, threshold = f1_max(test.scores, labels)
    return Evaluation(
        images=len(test.samples),
        anomalous=int(labels.sum()),
        image_auroc=image_auroc(test.scores, labels),
        image_f1_max=best,
        image_f1_threshold=threshold,
        pixel=None if test.masks is None else pixel_metrics(test.maps, test.masks),
        defects=_by_defect(test),
        vanished=tuple(str(path) for path in test.vanished),
    )


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
