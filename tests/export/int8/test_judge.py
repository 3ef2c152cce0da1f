"""What INT8 may lose, and images that say nothing about it."""

import numpy as np
import pytest

from destseg_deploy.data.calibration import Labelled
from destseg_deploy.errors import DataError, ExportError
from destseg_export.int8.judge import (
    MAP_LIMIT,
    SCORE_LIMIT,
    Answers,
    check_calibration,
    check_kept,
    check_reference,
    cost,
    largest_loss,
    split,
)


def _answers(count: int = 10, contrast: float = 0.5, seed: int = 0) -> Answers:
    """Return answers for as many normal as anomalous images; the defects are brighter."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((2 * count, 8, 8), np.bool_)
    masks[count:, 2:5, 2:5] = True
    maps = (0.4 * rng.random(masks.shape) + contrast * masks).astype(np.float32)
    return Answers(maps, maps.max(axis=(1, 2)), masks)


def _images(normal: int, anomalous: int) -> Labelled:
    masks = np.zeros((normal + anomalous, 8, 8), np.bool_)
    masks[normal:, 0, 0] = True
    places = np.arange(len(masks), dtype=np.uint8)
    return Labelled(np.tile(places[:, None, None, None], (1, 8, 8, 3)), masks)


def test_images_that_chose_the_layers_do_not_judge_them():
    first, second = split(_images(11, 10))
    ids = [set(half.frames[:, 0, 0, 0].tolist()) for half in (first, second)]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == set(range(21))
    assert (first.labels.sum(), second.labels.sum()) == (5, 5)


@pytest.mark.parametrize("counts", [(9, 10), (10, 9), (2, 2), (100, 0)])
def test_too_few_images_are_refused(counts):
    words = f"{counts[0]} normal and {counts[1]} anomalous .* at least 10 of each"
    with pytest.raises(DataError, match=words):
        split(_images(*counts))
    with pytest.raises(DataError, match="7 normal images to calibrate on, expected at least 8"):
        check_calibration(7)
    check_calibration(8)


@pytest.mark.parametrize("contrast", [0.0, 0.02])
def test_a_graph_that_may_be_guessing_is_refused(contrast):
    check_reference(_answers(contrast=0.5))
    with pytest.raises(ExportError, match=r"image AUROC of 0.*expected 0\.6"):
        check_reference(_answers(contrast=contrast))


def test_scores_that_are_all_equal_are_refused():
    plain = _answers()
    same = Answers(plain.maps, np.full_like(plain.scores, 0.3), plain.masks)
    with pytest.raises(ExportError, match=r"image AUROC of 0\.500"):
        check_reference(same)


@pytest.mark.parametrize(
    ("pixel", "score"), [(MAP_LIMIT + 0.01, 0.0), (0.0, SCORE_LIMIT + 0.01), (np.nan, 0.0)]
)
def test_answers_that_move_far_are_refused_whatever_the_metrics_say(pixel, score):
    plain = _answers()
    moved = Answers(plain.maps + 0, plain.scores + np.float32(score), plain.masks)
    moved.maps[0, 0, 0] += pixel
    with pytest.raises(ExportError, match=r"int8 moves a pixel of the map by .*allowed 0\.3"):
        check_kept(plain, moved, 100.0)


@pytest.mark.parametrize(
    ("pixel", "score", "moved"),
    [(0.9 * MAP_LIMIT, 0.0, 0.9), (1.1 * MAP_LIMIT, 0.0, 1.1), (0.0, SCORE_LIMIT / 2, 0.5)],
)
def test_the_answer_that_moves_farthest_counts_when_layers_are_chosen(pixel, score, moved):
    plain = _answers()
    after = Answers(plain.maps + 0, plain.scores + np.float32(score), plain.masks)
    after.maps[0, 0, 0] += pixel
    assert cost(plain, after).moved == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("metric", ["pixel_ap", "image_auroc"])
def test_the_metric_that_loses_more_counts(metric):
    plain = _answers(contrast=0.3)
    noise = np.random.default_rng(1).normal(0, 0.05, plain.maps.shape).astype(np.float32)
    if metric == "pixel_ap":
        worse = Answers(plain.maps + noise, plain.scores, plain.masks)
    else:
        worse = Answers(plain.maps, plain.scores + 6 * noise[:, 0, 0], plain.masks)
    point = 100 * (getattr(plain.accuracy(), metric) - getattr(worse.accuracy(), metric))
    assert cost(plain, worse).lost == largest_loss(plain, worse) > point > 0


def test_what_is_lost_is_bounded_from_above():
    plain = _answers(contrast=0.3)
    assert largest_loss(plain, plain) == 0 == check_kept(plain, plain, 0.0)
    noise = np.random.default_rng(1).normal(0, 0.03, plain.maps.shape).astype(np.float32)
    worse = Answers(plain.maps + noise, plain.scores, plain.masks)
    point = 100 * (plain.accuracy().pixel_ap - worse.accuracy().pixel_ap)
    bound = largest_loss(plain, worse)
    assert bound > point > 0
    with pytest.raises(ExportError, match=r"loses up to .* on 20 images .*allowed"):
        check_kept(plain, worse, (bound + point) / 2)
    assert check_kept(plain, worse, bound) == bound
