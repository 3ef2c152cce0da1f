"""Which images are shown as a model's worst errors, and the page they are shown on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.data.mvtec import Sample
from destseg_deploy.errors import DataError
from destseg_deploy.evaluation import worst_errors as module
from destseg_deploy.evaluation.test_set import TestSet, compute_metrics
from destseg_deploy.evaluation.worst_errors import (
    OperatingPoint,
    draw_worst,
    mask_share,
    operating_point,
    worst_errors,
)
from destseg_deploy.pictures.text import GROUND_TRUTH, PREDICTED
from destseg_deploy.spec import Threshold

POINT = OperatingPoint(0.5, 0.25, "by hand")
NORMAL = [0.1, 0.6, 0.5, 0.4, 0.9]
ANOMALOUS = [0.8, 0.2, 0.95, 0.5, 0.55, 0.7]


def _colour(index: int) -> tuple[int, int, int]:
    """Return a colour that is no other image's, and on no caption."""
    return 20 * index + 10, 200 - 15 * index, 111


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _make(folder: Path, *, sizes: dict[int, tuple[int, int]] | None = None) -> TestSet:
    """Write 5 good and 6 defective images of one colour each, with masks in a corner.

    The map of a defect covers a tenth of the mask for each place in its score's rank.
    """
    samples, maps, masks = [], [], []
    shares = np.argsort(np.argsort(ANOMALOUS)) / 10
    for i, _ in enumerate([*NORMAL, *ANOMALOUS]):
        kind = "good" if i < len(NORMAL) else "dent"
        image, mask = folder / f"test/{kind}/{i:03}.png", folder / f"ground_truth/{i:03}.png"
        size = (sizes or {}).get(i, (300, 300))
        _write(image, np.full((*size, 3), _colour(i), np.uint8))
        truth = np.zeros((20, 20), bool)
        anomaly_map = np.zeros((20, 20), np.float32)
        if kind == "dent":
            truth[:10, :10] = True
            drawn = np.zeros(size, np.uint8)
            drawn[: size[0] // 2, : size[1] // 2] = 255
            _write(mask, drawn)
            hit = round(100 * shares[i - len(NORMAL)])
            anomaly_map[:10, :10].flat[:hit] = 0.3
            anomaly_map[10:, 10:].flat[: 100 - hit] = 0.3
        samples.append(Sample(image, kind, mask if kind == "dent" else None))
        maps.append(anomaly_map)
        masks.append(truth)
    scores = np.array([*NORMAL, *ANOMALOUS], np.float32)
    return TestSet(tuple(samples), scores, np.stack(maps), np.stack(masks))


@pytest.fixture(scope="module")
def test(tmp_path_factory) -> TestSet:
    return _make(tmp_path_factory.mktemp("plate"))


def _chosen(test: TestSet, **options) -> list[list[int]]:
    return [[e.index for e in group.errors] for group in worst_errors(test, POINT, **options)]


def test_each_group_has_its_worst_image_first(test):
    assert _chosen(test, count=3) == [[4, 1, 2], [6, 8, 9], [10, 5, 7]]
    assert _chosen(test, count=1) == [[4], [6], [9]]


def test_no_image_comes_twice_and_none_is_needed_for_the_third_group(test):
    groups = _chosen(test, count=4)
    assert groups == [[4, 1, 2, 3], [6, 8, 9, 10], [5, 7]]
    assert _chosen(test, count=99) == [[4, 1, 2, 3, 0], [6, 8, 9, 10, 5, 7]]


def test_only_found_defects_are_called_badly_localised(test):
    """At threshold 0.75 two are found, the rest missed; the second group shows two of those."""
    groups = worst_errors(test, replace(POINT, score=0.75), count=2)
    assert [e.index for e in groups[2].errors] == [5, 7]
    assert [e.index for e in groups[1].errors] == [6, 8]


def test_what_is_said_of_an_image_is_its_error(test):
    groups = worst_errors(test, POINT, count=3)
    assert [e.remark for e in groups[0].errors] == [
        "false reject: 0.4 above the threshold",
        "false reject: 0.1 above the threshold",
        "at the threshold",  # which is OK, and right for a good part
    ]
    assert [e.remark for e in groups[1].errors] == [
        "missed: 0.3 below the threshold",
        "missed: at the threshold",
        "0.05 above the threshold",
    ]
    assert [e.remark for e in groups[2].errors] == [
        "30% of the mask hit",
        "40% of the mask hit",
        "50% of the mask hit",
    ]


def test_titles_count_the_wrong_verdicts(test):
    titles = [group.title for group in worst_errors(test, POINT)]
    assert titles[0].endswith("2 of 5 rejected")
    assert titles[1].endswith("2 of 6 missed")
    assert len(titles) == 3


def test_without_ground_truth_nothing_is_localised(test):
    assert _chosen(replace(test, masks=None), count=3) == [[4, 1, 2], [6, 8, 9]]


def test_a_mask_that_vanished_is_not_judged(test):
    masks = test.masks.copy()
    masks[10] = False
    assert _chosen(replace(test, masks=masks), count=3)[2] == [5, 7]


def test_equal_scores_keep_their_order(test):
    level = TestSet(test.samples * 20, np.full(220, 0.5, np.float32), test.maps, None)
    assert _chosen(level, count=7) == [[0, 1, 2, 3, 4, 11, 12], [5, 6, 7, 8, 9, 10, 16]]


# --- the share of the mask


def _share(values: list[float], mask: list[int]) -> float:
    return mask_share(np.array([values], np.float32), np.array([mask], bool))


def test_the_share_of_a_mask_is_counted_among_as_many_peaks():
    assert _share([0.9, 0.8, 0.1, 0.0], [1, 1, 0, 0]) == 1
    assert _share([0.9, 0.8, 0.1, 0.0], [0, 0, 1, 1]) == 0
    assert _share([0.9, 0.8, 0.1, 0.0], [1, 0, 1, 0]) == 0.5
    assert _share([0.9, 0.8, 0.1, 0.0], [0, 1, 1, 1]) == pytest.approx(2 / 3)
    assert _share([0.9, 0.8, 0.1, 0.0], [1, 1, 1, 1]) == 1


def test_tied_pixels_are_drawn_by_lot():
    assert _share([0.3] * 8, [1, 1, 0, 0, 0, 0, 0, 0]) == 0.25
    assert _share([0.9, 0.3, 0.3, 0.0], [1, 1, 0, 0]) == 0.75


def test_the_share_is_that_of_a_sort_where_nothing_ties():
    rng = np.random.default_rng(1)
    for _ in range(20):
        anomaly_map = rng.permutation(35 * 20).reshape(35, 20).astype(np.float32)
        mask = rng.random((35, 20)) < rng.uniform(0.01, 0.6)
        top = np.argsort(-anomaly_map.ravel())[: mask.sum()]
        assert mask_share(anomaly_map, mask) == pytest.approx(mask.ravel()[top].mean())


# --- the threshold


def test_the_artifacts_threshold_comes_first(test):
    result = compute_metrics(test)
    point = operating_point(Threshold(0.7, 0.2, "a rule"), result)
    assert (point.score, point.pixel, point.source) == (0.7, 0.2, "the artifact's threshold")
    point = operating_point(None, result)
    assert (point.score, point.pixel) == (result.image_f1_threshold, result.pixel.f1_threshold)
    assert point.source == "best F1 on these images"
    assert operating_point(None, replace(result, pixel=None)).pixel is None


# --- the page


def _rows_of(page: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return the rows in which at least ten pixels have a colour."""
    return np.flatnonzero((page == colour).all(axis=2).sum(axis=1) >= 10)


def test_the_page_shows_the_chosen_images_in_their_order(test):
    page = draw_worst(test, POINT, count=2)
    assert (page.dtype, page.ndim, page.shape[2]) == (np.uint8, 3, 3)
    tops = {i: _rows_of(page, _colour(i)) for i in range(11)}
    assert {i for i, rows in tops.items() if rows.size} == {4, 1, 6, 8, 9, 10}
    first = {i: rows[0] for i, rows in tops.items() if rows.size}
    assert first[4] == first[1] < first[6] == first[8] < first[9] == first[10]
    assert all(rows.size >= 300 for rows in tops.values() if rows.size)


def test_only_what_is_shown_is_read(test, monkeypatch):
    read = []
    true = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: read.append(path.name) or true(path))
    draw_worst(test, POINT, count=1)
    assert sorted(read) == ["004.png", "006.png", "009.png"]


def test_contours_are_those_of_mask_and_map(test):
    def colours(shown: TestSet, point: OperatingPoint) -> tuple[int, int]:
        page = draw_worst(shown, point, count=1)
        return tuple(
            int((page == colour).all(axis=2).sum()) for colour in (GROUND_TRUTH, PREDICTED)
        )

    without = replace(test, samples=tuple(replace(s, mask=None) for s in test.samples))
    truth, found = colours(test, POINT)
    assert truth > 2 * 280  # two masks of half a panel's sides
    assert found > 2 * 200
    assert colours(without, POINT)[0] == 0
    assert colours(without, replace(POINT, pixel=None))[1] < found / 2  # words are white too


def test_large_images_are_drawn_small_and_small_ones_larger(tmp_path):
    widths = {}
    for side in (64, 300, 700):
        shown = _make(tmp_path / str(side), sizes=dict.fromkeys(range(11), (side, side)))
        widths[side] = draw_worst(shown, POINT, count=2).shape[1]
    assert widths[300] == widths[700]
    assert 1800 < widths[300] < 1920, "two triptychs fill a screen and no more"
    assert 1500 < widths[64] < widths[300]


def test_images_of_other_shapes_keep_theirs(tmp_path):
    """Nothing is scaled to fill its cell: each image is as large as it would be alone."""
    shapes = {4: (100, 300), 1: (600, 200), 6: (300, 300)}
    page = draw_worst(_make(tmp_path, sizes=shapes), POINT, count=2)
    for i, (height, width) in {4: (100, 300), 1: (300, 100), 6: (300, 300)}.items():
        rows, columns = np.nonzero((page == _colour(i)).all(axis=2))
        top, left = rows.min(), columns.min()
        panel = (page[top, left:] == _colour(i)).all(axis=1)
        assert np.argmin(panel) == width
        assert np.argmin((page[top:, left] == _colour(i)).all(axis=1)) == height


def test_maps_of_the_cameras_size_are_drawn_too(test):
    maps, masks = (array.repeat(40, axis=1).repeat(30, axis=2) for array in (test.maps, test.masks))
    page = draw_worst(replace(test, maps=maps, masks=masks), POINT, count=1)
    assert page.shape == draw_worst(test, POINT, count=1).shape


def test_an_image_that_has_gone_is_named(tmp_path):
    shown = _make(tmp_path)
    shown.samples[4].image.unlink()
    with pytest.raises(DataError, match=r"004\.png: no such file"):
        draw_worst(shown, POINT, count=1)


def test_long_names_do_not_widen_the_page(test, tmp_path):
    usual = draw_worst(test, POINT, count=1).shape
    long = tmp_path / f"{'a_very_long_name_of_an_image' * 8}.png"
    _write(long, np.full((300, 300, 3), 50, np.uint8))
    samples = list(test.samples)
    samples[4] = replace(samples[4], image=long)
    assert draw_worst(replace(test, samples=tuple(samples)), POINT, count=1).shape == usual
