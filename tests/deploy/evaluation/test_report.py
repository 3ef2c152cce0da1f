"""One pass over a category: the numbers, and the folder of pictures that is written or not."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.errors import BackendError, DataError, MetricError
from destseg_deploy.evaluation import report as module
from destseg_deploy.evaluation.report import evaluate_category
from destseg_deploy.evaluation.test_set import compute_metrics, score_test_set, sweep_top_k
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import Threshold
from destseg_deploy.testing import FakeRuntime, fake_spec
from tests.unchanged import unchanged

SIZE = 32
MODEL = Path("models/fake.onnx")
THRESHOLD = Threshold(0.5, 0.4, "by hand")
LEVELS = {"good": (20, 160, 22), "dent": (200, 90), "spot": (210,)}
"""The brightest part of each image: one good part is too bright, one dent too dark."""


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def category(tmp_path) -> Path:
    folder = tmp_path / "plate"
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[8:16, 8:16] = 255
    for kind, levels in LEVELS.items():
        for i, level in enumerate(levels):
            part = np.full((SIZE, SIZE, 3), 20, np.uint8)
            part[8:16, 8:16] = level
            _write(folder / f"test/{kind}/{i}.png", part)
            if kind != "good":
                _write(folder / f"ground_truth/{kind}/{i}_mask.png", mask)
    return folder


class Counting(FakeRuntime):
    """Counts the images it was shown."""

    seen = 0

    def infer(self, images):
        self.seen += len(images)
        return super().infer(images)


def _predictor(threshold: Threshold | None = THRESHOLD) -> Predictor:
    return Predictor(Counting(replace(fake_spec(SIZE, SIZE), threshold=threshold)))


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_without_an_output_nothing_is_written(category, tmp_path):
    with unchanged(tmp_path):
        report = evaluate_category(_predictor(), MODEL, category)
    assert report.result == compute_metrics(score_test_set(_predictor(), category))
    assert (report.judged.false_rejects, report.judged.missed, report.sweep) == (1, 1, ())
    said = report.to_dict()
    assert (said["artifact"], said["data"]) == (str(MODEL), str(category))
    assert said["threshold"] == asdict(THRESHOLD)
    assert said["judged"] == {"false_rejects": 1, "missed": 1}
    assert said["sweep_t"] == []
    assert said["image_auroc"] == report.result.image_auroc


@pytest.mark.parametrize("ts", [(), (100, 6000)])
def test_one_pass_gives_everything(category, tmp_path, ts):
    predictor = _predictor()
    done = []
    out = tmp_path / "new/out"
    report = evaluate_category(
        predictor,
        MODEL,
        category,
        ts=ts,
        output=out,
        batch_size=4,
        report=lambda *progress: done.append(progress),
    )
    assert predictor.runtime.seen == 6
    assert [count for count, _, _ in done] == [1, 2, 3, 4, 5, 6]
    assert _files(out) == ["curves.png", "metrics.json", "report.html", "worst.png"]
    assert report.result == compute_metrics(report.test)
    assert report.sweep == (sweep_top_k(report.test, ts) if ts else ())
    for name in ("curves.png", "worst.png"):
        with Image.open(out / name) as picture:
            assert picture.mode == "RGB"
            assert picture.size[0] > 1400


def test_the_file_of_numbers_has_all_that_is_printed_and_each_image(category, tmp_path):
    report = evaluate_category(_predictor(), MODEL, category, output=tmp_path / "out")
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    printed = json.loads(json.dumps(report.to_dict()))
    assert {key: written[key] for key in printed} | {"sweep_t": []} == printed
    assert [row["t"] for row in written["sweep_t"]] == [20, 50, 100, 200]
    assert written["pictures_judged_by"] == {
        "score": 0.5,
        "pixel": 0.4,
        "source": "the artifact's threshold",
    }
    assert set(written) - set(printed) == {"pictures_judged_by", "scores"}
    rows = written["scores"]
    found = [(Path(row["image"]).name, row["defect"], row["verdict"]) for row in rows]
    assert found == [
        ("0.png", "good", "OK"),
        ("1.png", "good", "NG"),
        ("2.png", "good", "OK"),
        ("0.png", "dent", "NG"),
        ("1.png", "dent", "OK"),
        ("0.png", "spot", "NG"),
    ]
    assert [row["anomalous"] for row in rows] == [False] * 3 + [True] * 3
    np.testing.assert_allclose([row["score"] for row in rows], report.test.scores, rtol=0)
    assert Path(rows[3]["image"]) == category / "test/dent/0.png"


def test_the_sweep_that_was_asked_for_is_written(category, tmp_path):
    evaluate_category(_predictor(), MODEL, category, ts=(100, 6000), output=tmp_path / "out")
    rows = json.loads((tmp_path / "out/metrics.json").read_text())["sweep_t"]
    assert [(row["t"], row["k"]) for row in rows] == [(100, 2), (6000, 94)]


def test_without_a_threshold_nothing_is_judged_but_pictures_are_drawn(category, tmp_path):
    report = evaluate_category(_predictor(None), MODEL, category, output=tmp_path / "out")
    assert (report.threshold, report.judged) == (None, None)
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (written["threshold"], written["judged"]) == (None, None)
    assert {row["verdict"] for row in written["scores"]} == {None}
    point = written["pictures_judged_by"]
    assert point["source"] == "best F1 on these images"
    assert point["score"] == report.result.image_f1_threshold
    assert point["pixel"] == report.result.pixel.f1_threshold


def test_without_ground_truth_there_are_still_pictures(category, tmp_path):
    (category / "ground_truth").rename(tmp_path / "elsewhere")
    evaluate_category(_predictor(), MODEL, category, output=tmp_path / "out")
    assert _files(tmp_path / "out") == ["curves.png", "metrics.json", "report.html", "worst.png"]
    assert json.loads((tmp_path / "out/metrics.json").read_text())["pixel"] is None
    with Image.open(tmp_path / "out/curves.png") as picture:
        assert picture.size == (1500, 500)


def test_curves_and_worst_errors_are_judged_alike(category, tmp_path, monkeypatch):
    seen = {}
    image = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(
        module, "draw_curves", lambda *given, **options: seen.update(options) or image
    )
    monkeypatch.setattr(module, "draw_worst", lambda test, point: seen.update(point=point) or image)
    evaluate_category(_predictor(), MODEL, category, output=tmp_path / "out")
    assert (seen["threshold"], seen["point"].score, seen["point"].pixel) == (0.5, 0.5, 0.4)
    assert seen["threshold_name"] == seen["point"].source
    assert seen["title"] == "fake.onnx on plate: 6 images, 3 anomalous"


# --- nothing half-written


def test_without_matplotlib_nothing_is_run_or_written(category, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    predictor = _predictor()
    with unchanged(tmp_path), pytest.raises(BackendError, match="pip install"):
        evaluate_category(predictor, MODEL, category, output=tmp_path / "out")
    assert predictor.runtime.seen == 0
    assert evaluate_category(predictor, MODEL, category).result.images == 6


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(category, tmp_path):
    (tmp_path / "file").write_text("in the way")
    predictor = _predictor()
    with unchanged(tmp_path), pytest.raises(OSError, match="file"):
        evaluate_category(predictor, MODEL, category, output=tmp_path / "file/out")
    assert predictor.runtime.seen == 0


def test_a_t_out_of_range_is_refused_before_the_work(category, tmp_path):
    predictor = _predictor()
    with unchanged(tmp_path), pytest.raises(MetricError, match="T = 70000"):
        evaluate_category(predictor, MODEL, category, ts=(70000,), output=tmp_path / "out")
    assert predictor.runtime.seen == 0


def test_a_damaged_image_leaves_nothing_behind(category, tmp_path):
    (category / "test/spot/0.png").write_bytes(b"no image")
    with unchanged(tmp_path), pytest.raises(DataError, match=r"spot/0\.png"):
        evaluate_category(_predictor(), MODEL, category, output=tmp_path / "new/out")


def test_a_picture_that_fails_leaves_older_files_alone(category, tmp_path, monkeypatch):
    """The last picture fails, when curves.png is drawn already."""
    out = tmp_path / "out"
    evaluate_category(_predictor(), MODEL, category, output=out)

    def fail(*given):
        raise DataError("worst.png: no")

    monkeypatch.setattr(module, "draw_worst", fail)
    with unchanged(out), pytest.raises(DataError, match="no"):
        evaluate_category(_predictor(None), MODEL, category, output=out)
    monkeypatch.undo()
    evaluate_category(_predictor(None), MODEL, category, output=out)
    assert json.loads((out / "metrics.json").read_text())["threshold"] is None
