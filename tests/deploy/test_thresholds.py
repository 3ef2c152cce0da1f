"""The guarantee about rejected good parts, and what a threshold changes on disk."""

import re
import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from destseg_deploy.data.finding import list_images
from destseg_deploy.errors import DataError, MetricError, SpecError
from destseg_deploy.files import sha256
from destseg_deploy.loading import load
from destseg_deploy.options import OrtOptions
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import ModelSpec, spec_path
from destseg_deploy.testing import FakeRuntime, fake_spec
from destseg_deploy.thresholds import (
    at_most,
    by_hand,
    from_labelled,
    from_normal,
    measure_labelled,
    measure_normal,
    score_images,
    set_threshold,
    too_few,
)

DRAWS = 3000
ONE_THREAD = OrtOptions(threads=1)
"""ONNX Runtime's threads wait by spinning, which is slow where other tests run too."""


def _rejected(threshold_of, count: int) -> np.ndarray:
    """Return the false-reject rate on fresh parts, one for each of many draws of ``count``.

    Scores are uniform, so a threshold t rejects the share 1 - t of all good parts, exactly.
    """
    draws = np.random.default_rng(0).random((DRAWS, count)).astype(np.float32)
    return np.array([1 - threshold_of(scores) for scores in draws])


@pytest.mark.parametrize(
    ("count", "rate"), [(99, 0.05), (60, 0.05), (19, 0.1), (20, 0.1), (9, 0.25), (400, 0.01)]
)
def test_new_good_parts_are_rejected_as_rarely_as_promised(count, rate):
    rejected = _rejected(lambda scores: from_normal(scores, scores, rate).score, count)
    error = rejected.std() / np.sqrt(DRAWS)
    assert rejected.mean() <= rate + 4 * error
    # One rank higher would be needlessly blind: the mean is within one rank of the promise.
    assert rejected.mean() >= rate - 1 / (count + 1) - 4 * error


@pytest.mark.parametrize(("count", "rate"), [(20, 0.1), (9, 0.25)])
def test_a_plain_quantile_would_break_the_promise(count, rate):
    """Negative control: the simulation sees the missing ``+ 1``."""
    rejected = _rejected(lambda scores: np.quantile(scores, 1 - rate), count)
    assert rejected.mean() > rate + 4 * rejected.std() / np.sqrt(DRAWS)


def test_the_rank_is_the_conformal_one():
    scores = np.arange(99, dtype=np.float32)[::-1] / 100
    result = from_normal(scores, scores / 2, 0.05)
    assert result.score == np.float32(0.94)  # rank 95 of 99
    assert result.pixel == np.float32(0.94) / 2
    assert result.rule == "false-reject rate 5 %: rank 95 of the scores of 99 good images"
    assert (result.images, result.false_reject_rate) == (99, 0.05)


def test_scores_and_peaks_are_ranked_each_on_its_own():
    scores = np.linspace(0.1, 0.5, 9, dtype=np.float32)
    peaks = np.random.default_rng(0).permutation(np.linspace(0.6, 0.9, 9, dtype=np.float32))
    result = from_normal(scores, peaks, 0.2)
    assert result.score == scores[7]
    assert result.pixel == np.sort(peaks)[7]


def test_too_few_images_give_the_largest_and_say_what_it_is_worth():
    scores = np.array([0.3, 0.1, 0.2, 0.25], np.float32)
    result = from_normal(scores, scores + np.float32(0.1), 0.01)
    assert result.score == np.float32(0.3)
    assert result.pixel == np.float32(0.3) + np.float32(0.1)
    assert result.false_reject_rate == 1 / 5
    expected = (
        "highest score: 4 good images can guarantee a false-reject rate of 20 %; 1 % needs 99"
    )
    assert result.rule == expected


@pytest.mark.parametrize(
    ("count", "words"), [(4, "20 %"), (60, "1.64 %"), (150, "0.663 %"), (2000, "0.05 %")]
)
def test_a_bound_is_rounded_up(count, words):
    """60 images were said to guarantee 1.6 %, and guarantee 1.639 %."""
    scores = np.zeros(count, np.float32)
    for text in (too_few(count, 1e-5), from_normal(scores, scores, 1e-5).rule):
        assert f"can guarantee a false-reject rate of {words}; 0.001 % needs 99999" in text


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_a_share_in_per_cent_is_a_bound_of_three_digits(one, other):
    part, whole = sorted((one, other))
    shown = Fraction(at_most(part, whole).removesuffix(" %"))
    assert Fraction(100 * part, whole) <= shown <= Fraction(101 * part, whole)


def test_what_too_few_images_can_guarantee_is_true():
    rejected = _rejected(lambda scores: from_normal(scores, scores, 0.001).score, 4)
    assert rejected.mean() == pytest.approx(1 / 5, abs=4 * rejected.std() / np.sqrt(DRAWS))


@given(st.one_of(st.floats(0.002, 0.9), st.integers(2, 500).map(lambda k: 1 / k)))
def test_the_number_of_images_it_asks_for_is_enough_and_no_more(rate):
    one = np.zeros(1, np.float32)
    match = re.search(r"needs (\d+)$", from_normal(one, one, rate).rule)
    if match is None:  # one image is enough
        assert rate >= 0.5 - 1e-9
        return
    count = int(match.group(1))
    enough, fewer = np.zeros(count, np.float32), np.zeros(count - 1, np.float32)
    assert "needs" not in from_normal(enough, enough, rate).rule
    assert "needs" in from_normal(fewer, fewer, rate).rule


def test_ties_are_not_rejected():
    """Anomalous is *greater*: as many equal scores as there may be, none of them is rejected."""
    scores = np.array([0.2] * 50 + [0.4] * 49, np.float32)
    result = from_normal(scores, scores, 0.2)
    assert result.score == np.float32(0.4)
    assert not (scores > result.score).any()
    assert (scores > from_normal(scores, scores, 0.6).score).mean() == pytest.approx(49 / 99)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    scores = np.zeros(3, np.float32)
    with pytest.raises(MetricError, match=r"false-reject rate .*expected between 0 and 1"):
        from_normal(scores, scores, rate)


def test_no_images_are_refused():
    none = np.zeros(0, np.float32)
    with pytest.raises(MetricError, match="no normal images"):
        from_normal(none, none)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_of_a_broken_model_give_no_threshold(bad):
    good, broken = np.full(3, 0.2, np.float32), np.array([0.1, bad, 0.2], np.float32)
    for scores, peaks in ((broken, good), (good, broken)):
        with pytest.raises(MetricError, match="not finite"):
            from_normal(scores, peaks, 0.5)


def test_labelled_images_that_can_be_told_apart_are():
    scores = np.array([0.1, 0.9, 0.2, 0.8], np.float32)
    labels = np.array([False, True, False, True])
    peaks = np.array([0.15, 0.99, 0.3, 0.95], np.float32)
    result = from_labelled(scores, labels, peaks)
    np.testing.assert_array_equal(scores > result.score, labels)
    assert result.pixel == np.float32(0.3)
    assert result.rule == "best F1 (1.0000) on 2 anomalous and 2 good images"
    assert (result.images, result.false_reject_rate) == (4, None)


def test_labelled_images_that_overlap_get_the_best_compromise():
    scores = np.array([0.1, 0.2, 0.5, 0.4, 0.6, 0.7], np.float32)
    labels = np.array([False, False, False, True, True, True])
    result = from_labelled(scores, labels, scores)
    assert 0.2 <= result.score < 0.4
    assert "0.8571" in result.rule  # 3 found, 1 too many: 6 / 7


@pytest.mark.parametrize(
    ("scores", "labels", "f1"),
    [
        ([0.0, 0.0, 0.5], [True, False, True], "0.6667"),
        ([0.3, 0.0, 0.5], [False, True, True], "0.6667"),
        ([0.0, 0.0], [True, False], "0.0000"),
    ],
)
def test_the_rule_states_the_f1_that_the_threshold_has(scores, labels, f1):
    """The best one flags a score of 0, which no threshold in [0, 1] does."""
    scores, labels = np.array(scores, np.float32), np.array(labels)
    result = from_labelled(scores, labels, scores)
    found = scores > np.float32(result.score)
    assert f"{2 * (found & labels).sum() / (found.sum() + labels.sum()):.4f}" == f1
    assert f"best F1 ({f1}) on" in result.rule
    assert 0 <= result.score <= 1


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_one_kind_are_refused(label):
    scores = np.array([0.1, 0.2], np.float32)
    with pytest.raises(MetricError):
        from_labelled(scores, np.array([label] * 2), scores)


def test_by_hand():
    assert (by_hand(0.3).score, by_hand(0.3).pixel) == (0.3, 0.3)
    chosen = by_hand(0.0, 1.0)
    assert (chosen.score, chosen.pixel, chosen.rule) == (0.0, 1.0, "set by hand")
    assert (chosen.images, chosen.false_reject_rate) == (0, None)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), "0.3", True])
def test_by_hand_out_of_range_is_refused(value):
    with pytest.raises(MetricError, match=r"score .*expected between 0 and 1"):
        by_hand(value)
    with pytest.raises(MetricError, match=r"pixel .*expected between 0 and 1"):
        by_hand(0.5, value)


# --- on disk


@pytest.fixture
def predictor(onnx_artifact):
    with load(onnx_artifact, options=ONE_THREAD) as predictor:
        yield predictor


def test_only_the_threshold_of_the_spec_changes(artifact, onnx_artifact):
    chosen = by_hand(1.0, 0.25)
    set_threshold(artifact, chosen)
    assert sha256(artifact) == sha256(onnx_artifact)
    names = sorted(path.name for path in artifact.parent.iterdir())
    assert names == sorted([artifact.name, spec_path(artifact).name])
    before, after = ModelSpec.read(onnx_artifact), ModelSpec.read(artifact)
    assert after.threshold == chosen != before.threshold
    # The mark of a threshold that came with the weights goes: this one was set here.
    assert after.extra == {}
    as_before = replace(after, threshold=before.threshold, extra=before.extra)
    assert as_before.to_json() == before.to_json()
    after.check_artifact(artifact)


@pytest.mark.parametrize(("score", "found"), [(1.0, False), (0.0, True)])
def test_a_predictor_that_is_loaded_afterwards_obeys(artifact, frames, score, found):
    set_threshold(artifact, by_hand(score))
    with load(artifact, options=ONE_THREAD) as predictor:
        assert predictor.is_anomalous(predictor(frames)).tolist() == [found] * len(frames)


def test_images_without_labels_have_scores_and_peaks(tmp_path):
    paths = []
    for background, level, area in ((20, 200, np.s_[8:16]), (20, 20, np.s_[:]), (0, 250, (5, 5))):
        pixels = np.full((32, 32, 3), background, np.uint8)
        pixels[area] = level
        paths.append(tmp_path / f"{len(paths)}.png")
        Image.fromarray(pixels).save(paths[-1])
    scores, peaks = score_images(Predictor(FakeRuntime(fake_spec(32, 32))), paths)
    np.testing.assert_allclose(peaks * 255, [200, 20, 250], atol=1e-4)
    # The mean of the top 4 pixels; of the last image three of them are 0.
    np.testing.assert_allclose(scores * 255, [200, 20, 62.5], atol=1e-4)
    assert (scores.dtype, peaks.dtype) == (np.float32, np.float32)


def test_good_images_are_measured(predictor, category):
    good = list_images(category / "train/good")
    result = measure_normal(predictor, good, 0.4)
    assert (result.images, result.false_reject_rate) == (6, 0.4)
    scores, peaks = score_images(predictor, good)
    assert (scores > result.score).sum() == 1  # rank 5 of 6
    assert (peaks > result.pixel).sum() == 1
    assert measure_normal(predictor, good, 0.7).score < result.score


def test_a_good_image_counts_once_whatever_it_is_called(predictor, category, tmp_path):
    """99 names of one image guarantee nothing."""
    good = list_images(category / "train/good")
    (tmp_path / "again.png").symlink_to(good[0])
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(DataError, match=r"loop\.png"):
        measure_normal(predictor, [tmp_path / "loop.png"])
    for again in (good[0], tmp_path / "again.png"):
        with pytest.raises(DataError, match=r"the same image as .*each image once"):
            measure_normal(predictor, [*good, again])


def test_labelled_images_are_measured(predictor, category):
    result = measure_labelled(predictor, category)
    assert result.rule.startswith("best F1")
    images = sorted(category.glob("test/*/*.png"))
    scores, peaks = score_images(predictor, images)
    assert (scores > result.score).any()
    good = [path.parent.name == "good" for path in images]
    assert result.pixel == peaks[good].max()


def test_a_checkpoint_behind_a_link_takes_a_threshold_too(checkpoint, tmp_path):
    path = tmp_path / checkpoint.name
    path.symlink_to(checkpoint)
    shutil.copy(spec_path(checkpoint), spec_path(path))
    set_threshold(path, by_hand(0.3))
    with load(path) as predictor:
        assert predictor.spec.threshold == by_hand(0.3)
    assert path.is_symlink()


def test_a_category_without_defects_is_refused(predictor, category, tmp_path):
    shutil.copytree(category / "test/good", tmp_path / "good-only/test/good")
    with pytest.raises(DataError, match="only normal test images"):
        measure_labelled(predictor, tmp_path / "good-only")


def test_a_missing_spec_is_an_error(artifact):
    spec_path(artifact).unlink()
    with pytest.raises(SpecError, match="beside it"):
        set_threshold(artifact, by_hand(0.5))
    assert not spec_path(artifact).exists()
