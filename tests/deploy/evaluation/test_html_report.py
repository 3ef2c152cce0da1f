"""The report in a real browser: its counts are those of metrics.json, and it stays by itself."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.errors import DataError, OutputError
from destseg_deploy.evaluation.html_report import is_report, shown
from destseg_deploy.evaluation.report import evaluate_category, report_category
from destseg_deploy.evaluation.test_set import score_test_set
from destseg_deploy.evaluation.worst_errors import OperatingPoint
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import Threshold, TrainingRecord
from destseg_deploy.testing import FakeRuntime, fake_spec
from destseg_deploy.thresholds import at_most, from_normal
from tests.browser import complaints, requested, resize
from tests.unchanged import unchanged

SIZE = 32
MODEL = Path("models/it's fake.onnx")
THRESHOLD = Threshold(0.30196079611778259, 0.4, "false-reject rate 5 %: made up", 19, 0.05)
"""The score of a good part exactly, so that float64 in place of float32 would be seen."""

HOSTILE = "<img src=x onerror=alert(1)>"


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def category(tmp_path_factory) -> Path:
    """17 good parts and 12 defects whose brightness overlaps; one folder has a hostile name."""
    folder = tmp_path_factory.mktemp("data") / "plate"
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[8:16, 8:16] = 255
    for kind, levels in {
        "good": range(20, 105, 5),
        "dent": range(60, 180, 15),
        HOSTILE: (90, 250, 251, 252),
    }.items():
        for i, level in enumerate(levels):
            part = np.full((SIZE, SIZE, 3), 20, np.uint8)
            part[8:16, 8:16] = level
            part[12, 12] = min(255, level + 30)
            _write(folder / f"test/{kind}/{i}.png", part)
            if kind != "good":
                _write(folder / f"ground_truth/{kind}/{i}_mask.png", mask)
    _write(folder / "test/good/equal.png", np.full((SIZE, SIZE, 3), 77, np.uint8))
    return folder


def _predictor(threshold: Threshold | None = THRESHOLD) -> Predictor:
    return Predictor(FakeRuntime(replace(fake_spec(SIZE, SIZE), threshold=threshold)))


@pytest.fixture(scope="module")
def output(category, tmp_path_factory) -> Path:
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("out")
    evaluate_category(_predictor(), MODEL, category, output=folder)
    return folder


@pytest.fixture
def page(browser, output):
    """The report, opened anew; nothing but the file itself may be asked for."""
    requested(browser), complaints(browser)
    resize(browser, 1280, 900)
    address = (output / "report.html").as_uri()
    browser.get(address)
    yield browser
    assert requested(browser) == [address]
    assert complaints(browser) == []


def _text(page, name: str) -> str:
    return page.find_element("id", name).text


def _wrong(page, name: str) -> tuple[int, int]:
    words = (_text(page, f"{name}-rejected"), _text(page, f"{name}-missed"))
    return tuple(int(text.split()[0]) for text in words)


def _type(page, name: str, value: object) -> None:
    page.execute_script(
        "const [field, value] = arguments; field.value = value;"
        "field.dispatchEvent(new Event('change'))",
        page.find_element("id", f"{name}-value"),
        str(value),
    )


def _slide(page, name: str, place: int) -> float:
    """Move a slider; return the threshold that the command to copy then names."""
    page.execute_script(
        "const [slider, place] = arguments; slider.value = place;"
        "slider.dispatchEvent(new Event('input'))",
        page.find_element("id", f"{name}-slider"),
        place,
    )
    option = {"score": "--value", "pixel": "--pixel"}[name]
    return float(re.search(rf"{option} (\S+)", _text(page, "command"))[1])


def _counts(output: Path, threshold: float) -> tuple[int, int]:
    rows = json.loads((output / "metrics.json").read_text())["scores"]
    scores = np.array([row["score"] for row in rows], np.float32)
    bad = np.array([row["anomalous"] for row in rows])
    found = scores > np.float32(threshold)
    return int((found & ~bad).sum()), int((~found & bad).sum())


def test_it_opens_with_the_numbers_of_the_file_beside_it(page, output):
    judged = json.loads((output / "metrics.json").read_text())["judged"]
    assert _wrong(page, "score") == (judged["false_rejects"], judged["missed"])
    assert min(judged.values()) > 0, "the counts must be able to differ"
    assert "it's fake.onnx on plate" in page.title
    assert page.find_elements("css selector", "#numbers b")[0].text.startswith("0.")


def test_the_slider_counts_as_the_file_beside_it_does(page, output):
    seen = set()
    for place in range(0, 1001, 40):
        threshold = _slide(page, "score", place)
        assert _wrong(page, "score") == _counts(output, threshold), threshold
        seen.add(_wrong(page, "score"))
    assert len(seen) > 8
    assert {rejected for rejected, _ in seen} >= {0, 18}, "both ends can be reached"


def test_scores_are_compared_as_float32(page, output):
    """77 / 255 as float32 is above the same number in fewer digits, and equals it in float32."""
    for value in (THRESHOLD.score, 0.3019608, 0.30196):
        _type(page, "score", value)
        assert _wrong(page, "score") == _counts(output, value)
    assert _counts(output, 0.30196) != _counts(output, 0.3019608), "the control"


def test_the_guarantee_is_that_of_the_thresholds(page, category):
    """At the threshold that n good images give for a rate, the page guarantees that rate's rank."""
    test = score_test_set(_predictor(), category)
    good = ~test.labels
    peaks = test.maps.max(axis=(1, 2))
    for rate in (0.06, 0.2, 0.5):
        found = from_normal(test.scores[good], peaks[good], rate)
        _type(page, "score", found.score)
        shown = float(_text(page, "score-guarantee").rstrip(" %")) / 100
        count = good.sum()
        true = 1 - np.ceil((count + 1) * (1 - rate)) / (count + 1)
        assert true <= shown < true * 1.01 + 1e-9, "three digits, rounded up"
        assert shown <= rate * 1.01


def test_a_bound_is_rounded_up_and_never_shown_as_zero(page):
    """1 of 2,001 was shown as 0.0 %."""
    pairs = [(1, 2001), (1, 61), (1, 20), (2, 19), (1, 100_001), (20, 20), (7, 8)]
    shown = page.execute_script("return arguments[0].map(([a, b]) => atMost(a, b))", pairs)
    assert shown == [at_most(*pair) for pair in pairs]
    assert shown[:4] == ["0.05 %", "1.64 %", "5 %", "10.6 %"]


def test_the_pixel_card_speaks_of_outlines(page):
    """It decides no verdict, and promised that so many new good parts are rejected."""
    card, other = page.find_elements("css selector", "#sliders > .card")[::-1]
    assert "new good parts with an outline, at most (guaranteed)" in card.text
    assert "outline no good part" in card.text
    assert "It decides no verdict." in card.text
    assert "reject" not in card.text
    assert "new good parts rejected, at most (guaranteed)" in other.text


def test_outlines_are_drawn_where_they_are_counted(page):
    """Map values were rounded to the nearest level: good parts below the threshold had outlines."""
    differing = """
        const [pixel] = arguments, differing = [];
        for (const image of data.images.filter((image) => image.picture)) {
          const drawn = valuesOf(image.picture).some((value) => value > Math.fround(pixel));
          if (drawn !== isNG(image.peak, pixel)) differing.push(image.name);
        }
        return differing"""
    peaks = page.execute_script("return data.images.map((image) => image.peak)")
    for peak in peaks:
        for pixel in (peak, float(np.nextafter(np.float32(peak), np.float32(0)))):
            assert page.execute_script(differing, pixel) == []


def test_the_pixel_slider_counts_peaks(page, category):
    test = score_test_set(_predictor(), category)
    peaks = test.maps.max(axis=(1, 2))
    for place in (0, 300, 600, 1000):
        found = peaks > np.float32(_slide(page, "pixel", place))
        expected = int((found & ~test.labels).sum()), int((~found & test.labels).sum())
        assert _wrong(page, "pixel") == expected


def test_outlines_follow_the_pixel_threshold(page):
    """White pixels of the first tile's canvas, which its heat alone does not have."""
    count = """
        const canvas = document.querySelector('.tile canvas');
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let white = 0;
        for (let i = 0; i < pixels.length; i += 4)
          white += pixels[i] > 200 && pixels[i + 1] > 200 && pixels[i + 2] > 200;
        return white"""
    draw = """
        const done = arguments[1];
        state.pixel = arguments[0];
        const canvas = document.querySelector('.tile canvas'), tile = tiles[0];
        canvas.width = canvas.height = 256;
        drawPicture(canvas, tile.image.picture, state.pixel, {outline: true}).then(done)"""
    found = []
    for threshold in (0.5, 0.99):
        page.execute_async_script(draw, threshold)
        found.append(page.execute_script(count))
    assert found[0] > 100
    assert found[1] < found[0]


def test_filters_and_the_command(page):
    def tiles():
        found = page.find_elements("css selector", ".tile")
        return [tile for tile in found if tile.is_displayed()]

    assert len(tiles()) == 30
    rejected, missed = _wrong(page, "score")
    page.execute_script(
        "document.getElementById('filter').value = 'wrong';"
        "document.getElementById('filter').dispatchEvent(new Event('change'))"
    )
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert len(tiles()) == rejected + missed
    assert all("wrong" in tile.get_attribute("class") for tile in tiles())
    command = _text(page, "command")
    assert command.startswith(
        "destseg-threshold '" + "models/it'\"'\"'s fake.onnx' --value 0.30196"
    )


def test_names_of_files_are_text(page):
    assert page.find_elements("css selector", "img") == []
    assert "onerror=alert(1)" in page.find_element("id", "defects").text


@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_screen(page, width):
    resize(page, width, 900)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_guard_would_see_a_request(browser, tmp_path):
    """Negative control."""
    requested(browser)
    (tmp_path / "page.html").write_text('<img src="http://127.0.0.1:9/picture.png">')
    browser.get((tmp_path / "page.html").as_uri())
    assert "http://127.0.0.1:9/picture.png" in requested(browser)
    complaints(browser)


# --- without a browser


def _data(path: Path) -> dict:
    text = path.read_text("utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_name_cannot_end_the_script(category, tmp_path):
    folder = category.parent / "named"
    if not folder.exists():
        folder.symlink_to(category)
    report_category(
        _predictor(), Path("<!--<script>.onnx"), folder, tmp_path / "r.html", pictures=3
    )
    assert _data(tmp_path / "r.html")["title"] == "<!--<script>.onnx on named"


def test_a_hundred_pictures_stay_below_2_mb(tmp_path):
    """Noise is what WebP compresses worst; ten of them show what a hundred take."""
    rng = np.random.default_rng(0)
    for i in range(10):
        kind = "good" if i % 2 else "dent"
        _write(tmp_path / f"d/test/{kind}/{i}.png", rng.integers(0, 256, (300, 300, 3), np.uint8))
    sizes = []
    for pictures in (0, 10):
        report_category(_predictor(), MODEL, tmp_path / "d", tmp_path / "r.html", pictures=pictures)
        sizes.append((tmp_path / "r.html").stat().st_size)
        shown = [row for row in _data(tmp_path / "r.html")["images"] if "picture" in row]
        assert len(shown) == pictures
    assert sizes[0] + 10 * (sizes[1] - sizes[0]) < 2e6


def test_wrong_and_right_verdicts_share_the_pictures(category):
    test = score_test_set(_predictor(), category)
    point = OperatingPoint(THRESHOLD.score, None, "")
    wrong = (test.scores > np.float32(point.score)) != test.labels
    chosen = shown(test, point, 6)
    assert wrong[chosen].tolist() == [True] * 3 + [False] * 3
    assert len(shown(test, point, 100)) == len(set(shown(test, point, 100))) == 30
    assert shown(test, point, 0) == []
    many = shown(test, point, 29)
    assert wrong[many].sum() == wrong.sum()


def test_without_a_threshold_or_masks_there_is_a_report(category, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/test").symlink_to(category / "test")
    report = report_category(
        _predictor(None), MODEL, tmp_path / "bare", tmp_path / "r.html", pictures=2
    )
    data = _data(tmp_path / "r.html")
    assert data["point"]["source"] == "best F1 on these images"
    assert data["point"]["pixel"] == data["point"]["score"] == report.result.image_f1_threshold
    assert [curve["title"] for curve in data["curves"]] == ["Image ROC", "Image precision-recall"]


def test_what_is_no_report_is_not_replaced(category, tmp_path):
    (tmp_path / "r.html").write_text("<!doctype html>\n<p>mine")
    with unchanged(tmp_path), pytest.raises(OutputError, match=r"r\.html: exists"):
        report_category(_predictor(), MODEL, category, tmp_path / "r.html", pictures=2)
    (tmp_path / "r.html").unlink()
    for _ in range(2):
        report_category(_predictor(), MODEL, category, tmp_path / "r.html", pictures=2)
    assert is_report(tmp_path / "r.html")


def test_kinds_whose_names_cannot_be_shown_are_counted(browser, tmp_path):
    """The table compared their names with what is shown of them: 0 of 3 found."""
    strange, alike = "cut\u200btwo", "cut\\u200btwo"
    for kind in ("good", strange, alike):
        for i in range(3):
            level = 40 if kind == "good" else 200 + i
            _write(tmp_path / f"d/test/{kind}/{i}.png", np.full((SIZE, SIZE, 3), level, np.uint8))
    report_category(_predictor(), MODEL, tmp_path / "d", tmp_path / "r.html", pictures=0)
    browser.get((tmp_path / "r.html").as_uri())
    rows = browser.find_elements("css selector", "#defects tr")[1:]
    cells = [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows]
    assert [row[1:4] for row in cells] == [["3", "3", "0"]] * 2
    assert len({row[0] for row in cells}) == 2


@pytest.mark.parametrize("kind", ["good", "dent"])
def test_images_that_were_trained_on_are_named_and_guarantee_nothing(browser, tmp_path, kind):
    for i in range(6):
        name = f"d/test/{('good', 'dent')[i % 2]}/{i}.png"
        _write(tmp_path / name, np.full((SIZE, SIZE, 3), 40 + i, np.uint8))
    record = TrainingRecord(data=str(tmp_path / "d/test" / kind), images=3)
    spec = replace(fake_spec(SIZE, SIZE), threshold=THRESHOLD, training=record)
    page, data = tmp_path / "r.html", tmp_path / "d"
    report_category(Predictor(FakeRuntime(spec)), MODEL, data, page, pictures=0)
    browser.get(page.as_uri())
    seen = _text(browser, "seen")
    assert f"3 of 6 images were trained on, {3 if kind == 'good' else 0} of them good" in seen
    assert ("guarantee" not in _text(browser, "sliders")) == (kind == "good")
    _type(browser, "score", 0.5)
    assert ("guarantee" not in _text(browser, "advice")) == (kind == "good")


def test_a_failure_leaves_no_half_report(category, tmp_path, monkeypatch):
    from destseg_deploy.evaluation import html_report

    def fail(*given):
        raise DataError("gone")

    monkeypatch.setattr(html_report, "read_image", fail)
    with unchanged(tmp_path), pytest.raises(DataError, match="gone"):
        report_category(_predictor(), MODEL, category, tmp_path / "new/r.html", pictures=2)
