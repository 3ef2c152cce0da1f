"""What was measured of an artifact on a data set, for those who write it down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from destseg_deploy.evaluation.metrics import Curves
from destseg_deploy.evaluation.test_set import Evaluation, Judged, TestSet, TopKRow
from destseg_deploy.spec import ModelSpec, Threshold


@dataclass(frozen=True)
class Report:
    """What was measured of an artifact on a data set.

    Attributes:
        artifact: The model.
        folder: The folder or list of its images.
        test: Its images, with scores and maps.
        result: The metrics.
        curves: The pixel curves; None without ground truth.
        spec: The artifact's contract.
        sweep: Image AUROC for other scores; empty unless asked for.
        student_teacher: The metrics of a checkpoint's student-teacher map, the paper's DeST; None
            for an exported model, which has the segmentation alone.
        trained_on: Its images that the model was trained on, as far as that can be known.
    """

    artifact: Path
    folder: Path
    test: TestSet
    result: Evaluation
    curves: Curves | None
    spec: ModelSpec
    sweep: tuple[TopKRow, ...] = ()
    student_teacher: Evaluation | None = None
    trained_on: tuple[Path, ...] = ()

    @property
    def threshold(self) -> Threshold | None:
        """The artifact's threshold; None where none was set."""
        return self.spec.threshold

    @property
    def judged(self) -> Judged | None:
        """The wrong verdicts at the artifact's threshold; None without a threshold."""
        return None if self.threshold is None else self.test.judged(self.threshold.score)

    @property
    def remark(self) -> str | None:
        """What is to be said of images that the model was trained on; None if there are none."""
        if not self.trained_on:
            return None
        return (
            f"{len(self.trained_on)} of {self.result.images} images were trained on, such as "
            f"{self.trained_on[0]}; the accuracy is too high. Measure on images that were not."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "artifact": str(self.artifact),
            "data": str(self.folder),
            **self.result.to_dict(),
            "threshold": None if self.threshold is None else asdict(self.threshold),
            "judged": None if self.judged is None else asdict(self.judged),
            "sweep_t": [asdict(row) for row in self.sweep],
            "student_teacher": self.student_teacher and self.student_teacher.to_dict(),
            "trained_on": [str(path) for path in self.trained_on],
        }
