"""The page of curves: what is drawn is what was measured."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.data.mvtec import Sample
from destseg_deploy.errors import BackendError
from destseg_deploy.evaluation import curves as curve_plot
from destseg_deploy.evaluation.test_set import TestSet, compute_metrics_and_curves, image_roc

to_rgb = pytest.importorskip("matplotlib.colors").to_rgb

THRESHOLD = 0.33


def _test_set(kinds: tuple[str, ...] = ("good", "dent", "spot")) -> TestSet:
    """Return 24 noisy maps; those of the defects are brighter in a corner."""
    rng = np.random.default_rng(2)
    maps = rng.random((24, 16, 16)).astype(np.float32) * 0.5
    masks = np.zeros((24, 16, 16), bool)
    names = [kinds[i % 3] for i in range(24)]
    for i, name in enumerate(names):
        if name != "good":
            masks[i, :6, :6] = True
            maps[i, :6, :6] += np.float32(0.3 * rng.random())
    samples = tuple(Sample(Path(f"{i}.png"), name) for i, name in enumerate(names))
    scores = 0.4 * rng.random(24) + 0.3 * masks.any(axis=(1, 2))
    return TestSet(samples, scores.astype(np.float32), maps, masks)


def _draw(test: TestSet, *, title: str = "a title", threshold: float = THRESHOLD) -> np.ndarray:
    result, curves = compute_metrics_and_curves(test)
    return curve_plot.draw_curves(
        test, result, curves, threshold=threshold, threshold_name="the line", title=title
    )


@pytest.fixture
def figure(monkeypatch):
    """Return a function that draws a test set and gives matplotlib's figure."""
    kept = []
    monkeypatch.setattr(curve_plot, "_pixels", kept.append)

    def draw(test: TestSet, **options):
        _draw(test, **options)
        return kept.pop()

    return draw


def test_the_picture_fits_a_screen_and_is_drawn_on():
    test = _test_set()
    picture = _draw(test)
    assert (picture.shape, picture.dtype) == ((960, 1500, 3), np.uint8)
    panels = picture[:480, :500], picture[:480, 500:1000], picture[480:, :500], picture[480:, 1000:]
    for panel in panels:
        assert 0.5 < (panel == 255).all(axis=2).mean() < 0.98
    assert (picture != _draw(test, threshold=0.3)).any(), "the threshold is not drawn"


def test_without_ground_truth_only_the_upper_row_is_drawn(figure):
    shown = figure(replace(_test_set(), masks=None))
    assert shown.get_size_inches().tolist() == [15, 5]
    titles = [axes.get_title() for axes in shown.axes]
    assert len(titles) == 3
    assert not any("Pixel" in title or "PRO" in title for title in titles)


def test_titles_carry_the_values(figure):
    test = _test_set()
    result, _ = compute_metrics_and_curves(test)
    shown = figure(test, title="cable on cable")
    titles = [axes.get_title() for axes in shown.axes]
    assert shown.get_suptitle() == "cable on cable"
    values = [
        ("Image ROC", result.image_auroc),
        ("Image ROC", result.image_f1_max),
        ("Pixel ROC", result.pixel.auroc),
        ("precision-recall", result.pixel.ap),
        ("precision-recall", result.pixel.f1_max),
        ("PRO@0.3", result.pixel.pro),
    ]
    assert len({f"{value:.4f}" for _, value in values}) == 6, "values must be told apart"
    for name, value in values:
        assert any(name in title and f"{value:.4f}" in title for title in titles), name
    assert titles[5].endswith("over 16 regions")


def test_lines_are_the_curves(figure):
    test = _test_set()
    _, curves = compute_metrics_and_curves(test)
    axes = figure(test).axes
    expected = {
        0: image_roc(test),
        3: (curves.roc_fpr, curves.roc_tpr),
        4: (curves.pr_recall, curves.pr_precision),
        5: (curves.pro_fpr, curves.pro_overlap),
    }
    for place, (x, y) in expected.items():
        (line,) = (line for line in axes[place].lines if line.get_color() == curve_plot.LINE)
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_array_equal(line.get_ydata(), y)
        steps = "steps-pre" if place == 4 else "default"
        assert line.get_drawstyle() == steps


def test_pro_is_shaded_up_to_its_limit(figure):
    test = _test_set()
    result, curves = compute_metrics_and_curves(test)
    axes = figure(test).axes[5]
    assert axes.get_xlim() == (0, 0.3)
    (shade,) = axes.collections
    assert shade.get_paths()[0].get_extents().y1 == pytest.approx(curves.pro_overlap.max())
    assert [text.get_text() for text in axes.texts] == [f"PRO {result.pixel.pro:.4f}"]


def test_the_threshold_is_marked_where_it_judges(figure):
    test = _test_set()
    judged = test.judged(THRESHOLD)
    assert min(judged.missed, judged.false_rejects) > 0, "there must be errors to mark"
    axes = figure(test).axes
    (point,) = (line for line in axes[0].lines if line.get_marker() == "o")
    rejected, found = judged.false_rejects / 8, 1 - judged.missed / 16
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (rejected, found)
    assert f"{rejected:.1%} rejected, {found:.1%} found" in point.get_label()
    for place in (1, 2):
        (line,) = axes[place].lines
        assert set(line.get_xdata()) == {THRESHOLD}
    assert axes[1].lines[0].get_label() == "the line"


def test_every_image_is_in_the_histogram_and_in_its_defects_row(figure):
    test = _test_set(("dent", "good", "area"))
    axes = figure(test).axes
    normal, anomalous = axes[1].containers
    assert [sum(bar.get_height() for bar in bars) for bars in (normal, anomalous)] == [8, 16]
    legend = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert legend == ["normal (8)", "anomalous (16)", "the line"]
    assert normal[0].get_facecolor()[:3] == to_rgb(curve_plot.NORMAL)
    names = [label.get_text() for label in axes[2].get_yticklabels()]
    assert names == ["good", "area", "dent"]
    for row, (name, ticks) in enumerate(zip(names, axes[2].collections, strict=True)):
        chosen = [sample.defect == name for sample in test.samples]
        places = np.asarray(ticks.get_offsets())
        np.testing.assert_array_equal(places[:, 0], test.scores[chosen])
        assert set(places[:, 1]) == {row}


def test_chance_is_drawn_for_comparison(figure):
    test = _test_set()
    axes = figure(test).axes
    (line,) = (line for line in axes[4].lines if line.get_color() == curve_plot.GUIDE)
    assert set(line.get_ydata()) == {test.masks.mean()}


def test_equal_scores_can_be_drawn():
    test = _test_set()
    level = replace(test, scores=np.full(24, 0.5, np.float32))
    assert _draw(level).shape == (960, 1500, 3)


@pytest.mark.parametrize("name", ["a $5 part_$", "划痕", r"$\frac{"])
def test_names_are_words_and_not_formulas(name):
    """A letter that the font lacks is a box, and no warning."""
    test = _test_set(("good", name, "spot"))
    assert _draw(test, title=f"{name} on {name}").shape == (960, 1500, 3)


def test_pyplot_and_its_state_are_not_used():
    code = """
import sys, numpy as np
from pathlib import Path
from destseg_deploy.evaluation.curves import draw_curves
from destseg_deploy.data.mvtec import Sample
from destseg_deploy.evaluation.test_set import TestSet, compute_metrics_and_curves
assert "matplotlib" not in sys.modules
samples = tuple(Sample(Path("x"), name) for name in ("good", "dent"))
maps = np.stack([np.eye(8), 1 - np.eye(8)]).astype(np.float32)
test = TestSet(samples, np.array([0.1, 0.9], np.float32), maps, np.zeros((2, 8, 8), bool))
test.masks[1, :2] = True
result, curves = compute_metrics_and_curves(test)
draw_curves(test, result, curves, threshold=0.5, threshold_name="t", title="t")
print([name in sys.modules for name in ("matplotlib.figure", "matplotlib.pyplot")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[True, False]"


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendError, match=r"pip install 'destseg-deploy\[plots\]'"):
        curve_plot.require_matplotlib()
    with pytest.raises(BackendError, match="matplotlib: cannot be imported"):
        _draw(_test_set())
