"""What INT8 may lose, and images that say nothing about it."""

from dataclasses import fields, replace
from statistics import NormalDist

import numpy as np
import pytest

from destseg_deploy.data.calibration import Labelled
from destseg_deploy.errors import DataError, ExportError
from destseg_export.int8.judge import (
    MAP_LIMIT,
    SCORE_LIMIT,
    Answers,
    ask,
    check_calibration,
    check_kept,
    check_reference,
    cost,
    largest_loss,
    split,
    students_quantile,
)


def _answers(count: int = 10, contrast: float = 0.5, seed: int = 0) -> Answers:
    """Return answers for as many normal as anomalous images; the defects are brighter."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((2 * count, 8, 8), np.bool_)
    masks[count:, 2:5, 2:5] = True
    maps = (0.4 * rng.random(masks.shape) + contrast * masks).astype(np.float32)
    return Answers(maps, maps.max(axis=(1, 2)), masks, masks.any(axis=(1, 2)))


def _images(normal: int, anomalous: int) -> Labelled:
    masks = np.zeros((normal + anomalous, 8, 8), np.bool_)
    masks[normal:, 0, 0] = True
    places = np.arange(len(masks), dtype=np.uint8)
    frames = np.tile(places[:, None, None, None], (1, 8, 8, 3))
    return Labelled(frames, masks, masks.any(axis=(1, 2)))


def test_images_that_chose_the_layers_do_not_judge_them():
    first, second = split(_images(21, 20))
    ids = [set(half.frames[:, 0, 0, 0].tolist()) for half in (first, second)]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == set(range(41))
    assert (first.labels.sum(), second.labels.sum()) == (10, 10)


@pytest.mark.parametrize("counts", [(19, 20), (20, 19), (2, 2), (100, 0)])
def test_too_few_images_are_refused(counts):
    words = f"{counts[0]} normal and {counts[1]} anomalous .* at least 20 of each"
    with pytest.raises(DataError, match=words):
        split(_images(*counts))
    with pytest.raises(DataError, match="7 normal images to calibrate on, expected at least 8"):
        check_calibration(7)
    check_calibration(8)


@pytest.mark.parametrize("contrast", [0.0, 0.02])
def test_a_graph_that_may_be_guessing_is_refused(contrast):
    check_reference(_answers(contrast=0.5))
    with pytest.raises(ExportError, match=r"image AUROC of 0.*expected above 0\.812"):
        check_reference(_answers(contrast=contrast))


@pytest.mark.parametrize("count", [10, 20])
def test_a_graph_near_chance_is_rarely_taken_for_a_better_one(count):
    """Of 10 and 10 images, it was in 8 % of the cases."""
    rng = np.random.default_rng(0)
    plain, taken, draws = _answers(count), 0, 600
    for _ in range(draws):  # normal scores with an AUROC of 0.6
        scores = rng.normal(size=2 * count) + 0.3583 * plain.labels
        try:
            check_reference(replace(plain, scores=scores.astype(np.float32)))
        except ExportError:
            continue
        taken += 1
    assert 0.02 < taken / draws < 0.05 + 3 * np.sqrt(0.05 / draws)


def test_a_small_defect_whose_mask_is_empty_counts_as_one():
    """Its image counted as a good part, so that a score that finds it cost accuracy."""
    images = _images(20, 20)
    images.masks[-1] = False
    first, second = split(images)
    assert first.labels.sum() == second.labels.sum() == 10

    def run(frames):
        return frames[:, :, :, 0] / np.float32(40), frames[:, 0, 0, 0] / np.float32(40)

    answers = ask(run, second, (8, 8))
    assert not answers.masks[-1].any()
    assert answers.accuracy().image_auroc == 1


def test_scores_that_are_all_equal_are_refused():
    plain = _answers()
    same = replace(plain, scores=np.full_like(plain.scores, 0.3))
    with pytest.raises(ExportError, match=r"image AUROC of 0\.500"):
        check_reference(same)


@pytest.mark.parametrize(
    ("pixel", "score"), [(MAP_LIMIT + 0.01, 0.0), (0.0, SCORE_LIMIT + 0.01), (np.nan, 0.0)]
)
def test_answers_that_move_far_are_refused_whatever_the_metrics_say(pixel, score):
    plain = _answers()
    moved = replace(plain, maps=plain.maps + 0, scores=plain.scores + np.float32(score))
    moved.maps[0, 0, 0] += pixel
    with pytest.raises(ExportError, match=r"int8 moves a pixel of the map by .*allowed 0\.3"):
        check_kept(plain, moved, 100.0)


@pytest.mark.parametrize(
    ("pixel", "score", "moved"),
    [(0.9 * MAP_LIMIT, 0.0, 0.9), (1.1 * MAP_LIMIT, 0.0, 1.1), (0.0, SCORE_LIMIT / 2, 0.5)],
)
def test_the_answer_that_moves_farthest_counts_when_layers_are_chosen(pixel, score, moved):
    plain = _answers()
    after = replace(plain, maps=plain.maps + 0, scores=plain.scores + np.float32(score))
    after.maps[0, 0, 0] += pixel
    assert cost(plain, after).moved == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("metric", ["pixel_ap", "image_auroc"])
def test_the_metric_that_loses_more_counts(metric):
    plain = _answers(contrast=0.3)
    noise = np.random.default_rng(1).normal(0, 0.05, plain.maps.shape).astype(np.float32)
    if metric == "pixel_ap":
        worse = replace(plain, maps=plain.maps + noise)
    else:
        worse = replace(plain, scores=plain.scores + 6 * noise[:, 0, 0])
    point = 100 * (getattr(plain.accuracy(), metric) - getattr(worse.accuracy(), metric))
    assert cost(plain, worse).lost == largest_loss(plain, worse) > point > 0


def test_the_accuracy_without_an_image_is_that_of_the_others():
    plain = _answers(6, contrast=0.3)
    plain.maps.round(1, out=plain.maps)  # so that values tie
    plain.masks[-1] = False
    for i, (pixel_ap, auroc) in enumerate(plain.without_each):
        kept = np.delete(np.arange(12), i)
        rest = Answers(*(getattr(plain, f.name)[kept] for f in fields(plain))).accuracy()
        assert (pixel_ap, auroc) == pytest.approx((rest.pixel_ap, rest.image_auroc), abs=1e-12)


@pytest.mark.parametrize(("count", "least"), [(10, 0.88), (20, 0.91)])
def test_the_error_covers_what_images_lose_elsewhere(count, least):
    """Fewer than 95 %: what few images show is all that it knows. It is not called confidence."""
    rng = np.random.default_rng(0)
    plain, covered, draws = _answers(count), 0, 400
    flat = replace(plain, maps=plain.masks.astype(np.float32))  # nothing is lost there
    # AUROCs of two normal variables whose means differ by 1.5, and by 1.3 with noise of 0.3.
    true = 100 * (NormalDist().cdf(1.5 / 2**0.5) - NormalDist().cdf(1.3 / (2 + 2 * 0.3**2) ** 0.5))
    for _ in range(draws):
        scores = rng.normal(size=2 * count) + 1.5 * plain.labels
        worse = scores + 0.3 * rng.normal(size=2 * count) - 0.2 * plain.labels
        one, other = (replace(flat, scores=s.astype(np.float32)) for s in (scores, worse))
        covered += largest_loss(one, other) >= true
    assert covered / draws > least


def test_students_quantile_is_that_of_the_tables():
    assert [students_quantile(n) for n in (5, 9, 19, 1000)] == pytest.approx(
        [2.015, 1.833, 1.729, 1.646], abs=0.01
    )


def test_what_is_lost_is_bounded_from_above():
    plain = _answers(contrast=0.3)
    assert largest_loss(plain, plain) == 0 == check_kept(plain, plain, 0.0)
    noise = np.random.default_rng(1).normal(0, 0.03, plain.maps.shape).astype(np.float32)
    worse = replace(plain, maps=plain.maps + noise)
    point = 100 * (plain.accuracy().pixel_ap - worse.accuracy().pixel_ap)
    bound = largest_loss(plain, worse)
    assert bound > point > 0
    with pytest.raises(ExportError, match=r"loses .* points, and up to .* on 20 images .*allowed"):
        check_kept(plain, worse, (bound + point) / 2)
    assert check_kept(plain, worse, bound) == bound
