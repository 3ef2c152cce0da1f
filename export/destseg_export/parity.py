"""Parity: an artifact is compared with a reference on images before it gets its name.

Both sides get the same frames. The reference is the checkpoint in PyTorch, which resizes them on
the host, or, for a fused graph, the graph before the fusions.

A fault is seen only where the frames make the reference's answer move. So the gate also measures
its own sight: the span of each pixel over all frames, the largest difference of each image to
another one, and what each colour does. Where a span is 0 any answer would pass, and the artifact is
refused. And where it is small, as in a network that is nearly flat, the absolute budget would be
wider than all answers; so the difference must also be a small share of the span.

A difference alone does not show every fault. Where the last steps of a graph are stored in half,
its answers differ by less than half convolutions cost anyway, but they lie on half's grid, so that
images and pixels tie. Therefore the answers that end in zero bits are counted as well; those of
float32 seldom do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import ExportError, ParityError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.predictor import Predictor, resize_map
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.parity import BUDGETS as RUNTIME_BUDGETS
from destseg_deploy.runtime.torch_runtime import PyTorchRuntime
from destseg_deploy.spec import BatchRange, Budget, ModelSpec, ParityRecord
from destseg_deploy.spec.limits import are_answers
from destseg_export.frames import COLOURS, Frames

BUDGETS = {precision: RUNTIME_BUDGETS[precision] for precision in ("fp32", "fp16", "bf16")}
"""Precision -> how far its artifacts may differ from PyTorch, unless limits are given."""

FUSION_BUDGET = BUDGETS["fp32"]
"""How far fusions may move an answer; float32 rounding alone moved answers by up to 3e-5."""

SHARE, LARGEST_SHARE = 4.0, 0.4
"""A pixel may differ by ``SHARE`` times the budget of its span, at most by ``LARGEST_SHARE`` of it:
4e-4 in fp32, 4 % in fp16.

An error d of a logit moves a probability p by p (1 - p) d: by d / 4 at most, which the budget
allows, and by less than d times the pixel's span where that is small. A pixel that is stuck, at
any value, differs by at least half of its span, which is above ``LARGEST_SHARE``."""

REGIONS = 16
"""Rows, and columns, of regions into which a map is divided: 4 x 4 pixels of a map of 64 x 64."""

LEAST_SEEN = 0.5
"""Share of regions that must be seen. Not all: a network that was trained for a few minutes on
aligned parts answers 0 at the borders whatever it sees; there the absolute budget holds alone. But
a region that stands still, far from 0, is refused wherever it is."""

SEEN = 1e-3
"""Least span of a pixel, and least effect of a colour: ten times the budget of fp32."""

LARGEST_BATCH = 16
"""Of a comparison, where the artifact takes more."""

MAP_BITS, SCORE_BITS = 4, 12
"""Final bits that are looked at: 1 of 16 pixels has 4 zeros by chance, 1 of 4096 scores has 12. A
half value has 13 of 23 (bf16: 16), and keeps more than 4 when it is interpolated fourfold."""

CLEAR = (2.0**-4, 1 - 2.0**-10)
"""Only answers between these are looked at. Below, ONNX Runtime's float32 sigmoid, a sum with 0.5,
has a grid of its own; above, it is saturated, and a constant may end in zero bits."""

COARSE = 0.5
"""Share of answers on a coarse grid above which an artifact is refused."""


@dataclass(frozen=True)
class Verification:
    """What an artifact is compared on, and how closely.

    Attributes:
        images: Images to compare on; None for those of the training data, or rendered ones.
        anomaly_map: Largest difference allowed of a map's pixel; None for the precision's.
        score: Largest difference allowed of a score; None for the precision's.
    """

    images: Sequence[Path] | None = None
    anomaly_map: float | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits that allow every answer, or none.

        Raises:
            ExportError: If a limit is not a number between 0 and 1, where all answers lie.
        """
        for name, limit in (("map", self.anomaly_map), ("score", self.score)):
            if limit is not None and not 0 < limit < 1:
                raise ExportError(
                    f"--max-{name}-difference {limit}: expected a number above 0 and below 1, "
                    "since all answers lie in [0, 1]."
                )

    def budget(self, precision: str) -> Budget:
        """Return the budget of a precision with these limits in place of its own.

        Raises:
            ExportError: If the precision has no budget.
        """
        if precision not in BUDGETS:
            raise ExportError(f"precision {precision!r}: expected one of {', '.join(BUDGETS)}.")
        budget = BUDGETS[precision]
        if self.anomaly_map is not None:  # the mean's limit belongs to the precision's own limit
            budget = replace(budget, anomaly_map=self.anomaly_map, map_mean=1.0)
        return budget if self.score is None else replace(budget, score=self.score)


@dataclass(frozen=True)
class Reference:
    """What an artifact is compared with.

    Attributes:
        name: Its name in messages.
        remedy: What to do when an artifact differs from it.
    """

    name: str
    remedy: str


PYTORCH = Reference(
    "PyTorch", "Check the versions of torch, onnx and onnxruntime against constraints.txt."
)
UNFUSED = Reference(
    "the graph before the fusions", "Leave fusions out with --without, or use the plain export."
)


@dataclass(frozen=True)
class Parity:
    """What a comparison measured; differences are absolute.

    Attributes:
        count: Number of images compared.
        map_max_abs: Largest difference of any map pixel.
        score_max_abs: Largest difference of any score.
        bad_values: Number of values of the artifact that are not finite or outside [0, 1].
        control: Largest map difference of an image to another one, in the reference; that of the
            image that differs least.
        scores: Scores of the reference.
        candidate_scores: Scores of the artifact.
        map_mean_abs: Mean difference of the map pixels.
        score_mean_abs: Mean difference of the scores.
        coarse_map: Share of the artifact's ``CLEAR`` map values whose last ``MAP_BITS`` bits are
            0, minus the same share of the reference.
        coarse_scores: The same for the scores and ``SCORE_BITS``.
        map_share: Largest difference of a pixel, as a share of its span in the reference.
        score_share: The same for the scores.
        least_span: Smallest span of a region over all images, in the reference; that of a stuck
            one where there is one.
        least_place: Row and column where that region, or a stuck one, begins.
        seen_regions: Share of regions that move by more than ``SEEN``.
        stuck_regions: Regions above ``CLEAR`` that move by less than ``SEEN`` of what others do.
        channels: By how much each colour moves the reference's map; empty if that was not measured.
    """

    count: int
    map_max_abs: float
    score_max_abs: float
    bad_values: int
    control: float
    scores: tuple[float, ...]
    candidate_scores: tuple[float, ...]
    map_mean_abs: float = 0.0
    score_mean_abs: float = 0.0
    coarse_map: float = 0.0
    coarse_scores: float = 0.0
    map_share: float = 0.0
    score_share: float = 0.0
    least_span: float = 1.0
    least_place: tuple[int, int] = (0, 0)
    seen_regions: float = 1.0
    stuck_regions: int = 0
    channels: tuple[float, ...] = ()

    def record(
        self, compared: str, images: str, budget: Budget, rounding: str | None = None
    ) -> ParityRecord:
        """Return what the spec keeps; see ``ParityRecord`` for the arguments."""
        return ParityRecord(
            compared=compared,
            images=images,
            count=self.count,
            map_max_abs=self.map_max_abs,
            score_max_abs=self.score_max_abs,
            control=self.control,
            map_mean_abs=self.map_mean_abs,
            score_mean_abs=self.score_mean_abs,
            budget=budget,
            rounding=rounding,
        )

    def swapped_pairs(self, gap: float) -> int:
        """Count pairs of images that the artifact ranks in the opposite order.

        Only pairs count whose scores differ by more than ``gap`` in the reference: closer ones may
        change places within the budget.
        """
        apart = np.subtract.outer(self.scores, self.scores)
        found = np.subtract.outer(self.candidate_scores, self.candidate_scores)
        return int(((apart > gap) & (found < 0)).sum())


def answer(predictor: Predictor, frames: Frames | Sequence[NDArray[np.uint8]]) -> Prediction:
    """Return the answers to all frames, each computed alone as a line does.

    Args:
        predictor: What artifacts are compared with; takes frames of this size.
        frames: uint8 (H, W, 3), at least two.
    """
    images = frames.images if isinstance(frames, Frames) else frames
    return Prediction.concatenate(list(predictor.stream(images)))


def compare(
    wanted: Prediction, candidate: Predictor, frames: Frames | Sequence[NDArray[np.uint8]]
) -> Parity:
    """Run an artifact and measure how its answers differ.

    It runs in its smallest and its largest batches, since a graph may be right for some batch sizes
    only.

    Args:
        wanted: ``answer`` of the reference to these frames.
        candidate: The artifact.
        frames: uint8 (H, W, 3) at the artifact's input size, at least two.
    """
    spec, batch = candidate.spec, candidate.spec.input.batch
    pairs = frames.channels if isinstance(frames, Frames) else ()
    images = frames.images if isinstance(frames, Frames) else frames
    sizes = sorted({batch.min, max(batch.min, min(batch.max, LARGEST_BATCH, len(images)))})
    # The exported graph may return maps of another size than the network's.
    maps = np.stack([resize_map(anomaly_map, spec.map_size) for anomaly_map in wanted.anomaly_map])
    inside = None if spec.region is None else spec.region.mask_at(spec.size, spec.map_size)
    if inside is not None:
        maps[:, ~inside] = 0.0  # the resize carried values over the region's border
    found = [p for size in sizes for p in candidate.stream(images, batch_size=size)]
    parity = measure_parity(
        Prediction(np.tile(maps, (len(sizes), 1, 1)), np.tile(wanted.score, len(sizes))),
        Prediction.concatenate(found),
        inside,
    )
    moved = tuple(max(float(np.abs(maps[a] - maps[b]).max()) for a, b in each) for each in pairs)
    return replace(parity, count=len(images), channels=moved)


def measure_parity(
    wanted: Prediction, found: Prediction, inside: NDArray[np.bool_] | None = None
) -> Parity:
    """Measure how an artifact's answers differ from the reference's.

    Args:
        wanted: Answers of the reference for N images, with maps at the artifact's size.
        found: Answers of the artifact for the same images.
        inside: bool (H, W): pixels that are inspected, all unless given. Elsewhere both maps should
            be 0: a difference counts there, and what does not move does not.
    """
    maps, scores = found.anomaly_map, found.score
    values = np.concatenate([maps.ravel(), scores])
    map_difference = _differences(wanted.anomaly_map, maps)
    score_difference = _differences(wanted.score, scores)
    low, high = wanted.anomaly_map.min(axis=0), wanted.anomaly_map.max(axis=0)
    span, score_span = high - low, float(np.ptp(wanted.score))
    # Of all other images' answers, the farthest one at each pixel is one of the two ends.
    others = [float(np.maximum(high - one, one - low).max()) for one in wanted.anomaly_map]
    looked = np.ones(span.shape, np.bool_) if inside is None else inside
    regions, rows, columns = _regions(span)
    judged = _regions(looked)[0]
    stuck = judged & (regions <= SEEN * regions.max()) & (_regions(high)[0] > CLEAR[0])
    worst = stuck.argmax() if stuck.any() else np.where(judged, regions, np.inf).argmin()
    row, column = np.unravel_index(int(worst), regions.shape)
    return Parity(
        count=len(scores),
        map_max_abs=float(map_difference.max()),
        score_max_abs=float(score_difference.max()),
        bad_values=int((~are_answers(values)).sum()),
        control=min(others),
        scores=tuple(wanted.score.tolist()),
        candidate_scores=tuple(scores.tolist()),
        map_mean_abs=float(map_difference.sum() / (len(maps) * looked.sum())),
        score_mean_abs=float(score_difference.mean()),
        coarse_map=_share_of_coarse(maps, MAP_BITS)
        - _share_of_coarse(wanted.anomaly_map, MAP_BITS),
        coarse_scores=_share_of_coarse(scores, SCORE_BITS)
        - _share_of_coarse(wanted.score, SCORE_BITS),
        map_share=float((map_difference / np.maximum(span, SEEN)).max()),
        score_share=float(score_difference.max() / max(score_span, SEEN)),
        least_span=float(regions[row, column]),
        least_place=(int(rows[row]), int(columns[column])),
        seen_regions=float((regions[judged] > SEEN).mean()),
        stuck_regions=int(stuck.sum()),
    )


def _regions(
    span: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Return the largest value in each of ``REGIONS`` x ``REGIONS`` regions, and where they begin.

    Not of each pixel: a trained network leaves single pixels at 0 whatever it sees, and there the
    absolute budget holds alone.
    """
    rows, columns = (
        np.unique(np.linspace(0, size, REGIONS, endpoint=False).astype(int)) for size in span.shape
    )
    found = np.maximum.reduceat(np.maximum.reduceat(span, rows, axis=0), columns, axis=1)
    return found, rows, columns


def check_parity(parity: Parity, budget: Budget, name: str, reference: Reference = PYTORCH) -> None:
    """Refuse an artifact beyond the budget, and images that could not show it.

    Raises:
        ParityError: With the measured values.
    """
    if parity.bad_values:
        raise ParityError(
            f"{name}: {parity.bad_values} values are not finite or outside [0, 1]. Nothing was "
            "written. Check the checkpoint with destseg-evaluate, then export again."
        )
    _check_differences(parity, budget, name, reference)
    if max(parity.coarse_map, parity.coarse_scores) > COARSE:
        raise ParityError(
            f"{name}: {parity.coarse_map:.0%} more of the map's values and "
            f"{parity.coarse_scores:.0%} more of the scores than in {reference.name} end in zero "
            "bits: something behind the last convolution is stored in half, so that images and "
            "pixels tie. Nothing was written. Keep all of half.ISLANDS in fp32."
        )
    least = max(SEEN, parity.map_max_abs / _share(budget.anomaly_map))
    if not parity.control > least:
        raise ParityError(
            f"{name}: the images cannot tell right from wrong: the answer for another image "
            f"differs by only {parity.control:.2e}, expected more than {least:.2e}. Nothing was "
            "written. Pass more varied images with --verify-images, or train longer."
        )


def check_sight(parity: Parity, name: str) -> None:
    """Refuse frames that leave a part of the reference's map, or a colour, without effect.

    Raises:
        ParityError: With the place or the colour.
    """
    if parity.seen_regions < LEAST_SEEN or parity.stuck_regions:
        row, column = parity.least_place
        raise ParityError(
            f"{name}: the comparison cannot see {1 - parity.seen_regions:.1%} of the map, such as "
            f"around row {row}, column {column}: over {parity.count} images it moves there by "
            f"{parity.least_span:.2e}, expected more than {SEEN:.0e} in at least half of the map, "
            "and wherever it is not near 0. Nothing was written. Pass images with defects there "
            "with --verify-images, or train longer."
        )
    for colour, moved in zip(COLOURS, parity.channels, strict=False):
        if moved <= SEEN:
            raise ParityError(
                f"{name}: the comparison cannot see the colour {colour}: it moves the map by "
                f"{moved:.2e}, expected more than {SEEN:.0e}. Nothing was written. Pass coloured "
                "images with --verify-images, or train longer."
            )


def _share(budget: float) -> float:
    """Return which share of a span may be lost; see ``SHARE``."""
    return min(SHARE * budget, LARGEST_SHARE)


def _check_differences(parity: Parity, budget: Budget, name: str, reference: Reference) -> None:
    swapped = parity.swapped_pairs(budget.score)
    within = (
        parity.map_max_abs <= budget.anomaly_map
        and parity.map_mean_abs <= budget.map_mean
        and parity.score_max_abs <= budget.score
        and parity.map_share <= _share(budget.anomaly_map)
        and parity.score_share <= _share(budget.score)
    )
    if not within or swapped:
        raise ParityError(
            f"{name}: differs from {reference.name} on {parity.count} images: map by "
            f"{parity.map_max_abs:.2e} (allowed {budget.anomaly_map:.0e}), on average by "
            f"{parity.map_mean_abs:.2e} (allowed {budget.map_mean:.0e}), score by "
            f"{parity.score_max_abs:.2e} (allowed {budget.score:.0e}), a pixel by "
            f"{parity.map_share:.2%} of its span (allowed {_share(budget.anomaly_map):.2%}), the "
            f"scores by {parity.score_share:.2%} of theirs (allowed {_share(budget.score):.2%}), "
            f"{swapped} pairs of images ranked in the opposite order. Nothing was written. "
            f"{reference.remedy}"
        )


def _differences(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the absolute differences; infinity in place of NaN, which no budget allows."""
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.nan_to_num(difference, nan=np.inf)


def _share_of_coarse(values: NDArray[np.float32], bits: int) -> float:
    """Return the share of ``CLEAR`` values whose last bits are all 0; 0 if there are too few."""
    clear = values[(values > CLEAR[0]) & (values < CLEAR[1])].astype(np.float32, copy=False)
    if clear.size * bits < 64:  # 64 zero bits in a row do not happen by chance
        return 0.0
    return float((clear.view(np.uint32) % (1 << bits) == 0).mean())


def open_reference(model: DeSTSeg, trained: ModelSpec, spec: ModelSpec) -> Predictor:
    """Return the checkpoint in PyTorch, which sees frames as an artifact does.

    Args:
        model: The checkpoint's networks.
        trained: The checkpoint's spec.
        spec: The artifact's, whose tiles, region and score the checkpoint need not have.
    """
    served = replace(trained, output=replace(trained.output, top_k=spec.output.top_k))
    if spec.tiling is not None or spec.region is not None:
        height, width = spec.working_size
        one = BatchRange(1, 1, 1)  # the tiles of one large frame fill the memory
        served = replace(
            served,
            input=replace(spec.input, batch=one) if spec.tiling else spec.input,
            output=replace(served.output, height=height, width=width),
            tiling=spec.tiling,
            region=spec.region,
        )
    return Predictor(PyTorchRuntime(model, served))
