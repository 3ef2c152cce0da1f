"""Predicting files: rows, tables and overlays, all together or not at all."""

import csv
import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy import predict_files as module
from destseg_deploy.data.images import read_image
from destseg_deploy.errors import DataError, OutputError
from destseg_deploy.locks import locked
from destseg_deploy.predict_files import overlay_names, predict_files
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import NetworkSpec
from destseg_deploy.testing import FakeRuntime, fake_spec
from destseg_deploy.thresholds import by_hand
from tests.unchanged import unchanged


def _predictor(limit: float | None = 0.5, size: tuple[int, int] = (32, 32)) -> Predictor:
    threshold = None if limit is None else by_hand(limit, 0.8)
    return Predictor(FakeRuntime(replace(fake_spec(*size), threshold=threshold)))


def _write(path: Path, level: int, size: tuple[int, int] = (32, 32)) -> Path:
    """Write a grey image; its score is level / 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
    return path


def _listing(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def images(tmp_path) -> list[Path]:
    return [_write(tmp_path / f"in/{name}.png", level) for name, level in (("a", 51), ("b", 204))]


def test_rows_say_what_was_found(images, tmp_path):
    reports = []
    rows = predict_files(
        _predictor(), images, tmp_path / "out", report=lambda *progress: reports.append(progress)
    )
    assert [row.image for row in rows] == [str(path) for path in images]
    assert [row.verdict for row in rows] == ["OK", "NG"]
    np.testing.assert_allclose([row.score for row in rows], [0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose([row.normalized_score for row in rows], [0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose([row.peak for row in rows], [0.2, 0.8], atol=1e-6)
    assert reports == [(1, 2, "a.png"), (2, 2, "b.png")]


def test_the_csv_and_the_json_hold_the_rows(images, tmp_path):
    out = tmp_path / "out"
    rows = predict_files(_predictor(0.1), images, out, table="csv")
    predict_files(_predictor(0.1), images, tmp_path / "other", table="json")
    plain = [asdict(row) for row in rows]
    assert json.loads((tmp_path / "other/predictions.json").read_text()) == plain
    with (out / "predictions.csv").open(newline="", encoding="utf-8-sig") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == list(plain[0])
    assert table == [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in plain
    ]


def test_without_a_threshold_rows_have_no_verdict(images, tmp_path):
    rows = predict_files(_predictor(None), images, tmp_path / "out")
    assert {(row.verdict, row.normalized_score) for row in rows} == {(None, None)}
    with (tmp_path / "out/predictions.csv").open(newline="", encoding="utf-8-sig") as file:
        cells = [(row["verdict"], row["normalized_score"]) for row in csv.DictReader(file)]
    assert cells == [("", ""), ("", "")]


def test_a_score_equal_to_the_threshold_is_ok_in_the_table_too(tmp_path):
    """0.2 in float32 is above 0.2 in Python: the table must judge as Predictor does."""
    image = _write(tmp_path / "a.png", 51)
    predictor = _predictor(0.2)
    row = predict_files(predictor, [image], tmp_path / "out")[0]
    assert row.score > 0.2, "else this test shows nothing"
    assert row.verdict == "OK"
    assert row.normalized_score == 0.5
    assert not predictor.is_anomalous(predictor(read_image(image)))[0]


def test_names_with_commas_and_line_breaks_survive_the_csv(tmp_path):
    image = _write(tmp_path / 'in/a,"b"\nc.png', 51)
    predict_files(_predictor(), [image], tmp_path / "out")
    with (tmp_path / "out/predictions.csv").open(newline="", encoding="utf-8-sig") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [str(image)]


def test_the_peak_is_in_pixels_of_the_image(tmp_path):
    """An image four times as large as the network: the bright square's place, not the map's."""
    pixels = np.zeros((128, 160, 3), np.uint8)
    pixels[80:96, 120:140] = 255
    Image.fromarray(pixels).save(tmp_path / "large.png")
    row = predict_files(_predictor(), [tmp_path / "large.png"], tmp_path / "out")[0]
    assert 120 <= row.x < 140
    assert 80 <= row.y < 96
    assert row.peak > 0.9
    assert row.verdict == "NG"


def test_the_peak_of_a_single_pixel_is_exact(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[7, 21] = 255
    Image.fromarray(pixels).save(tmp_path / "dot.png")
    row = predict_files(_predictor(), [tmp_path / "dot.png"], tmp_path / "out")[0]
    assert (row.x, row.y, row.peak) == (21, 7, 1.0)
    assert row.verdict == "OK"  # its score is the mean of four pixels


def test_an_overlay_is_drawn_for_each_image_and_tells_them_apart(images, tmp_path):
    predict_files(_predictor(), images, tmp_path / "out")
    pictures = sorted((tmp_path / "out/overlays").iterdir())
    assert [path.name for path in pictures] == ["a.png", "b.png"]
    normal, anomalous = (read_image(path).astype(int) for path in pictures)
    assert normal.shape == anomalous.shape
    strip = slice(260, None)  # 32 px images are enlarged to 256; the caption is below
    assert np.abs(normal[strip] - anomalous[strip]).max() > 100
    assert np.abs(normal[:256] - normal[:256].mean(axis=2, keepdims=True)).max() < 60


def test_each_overlay_shows_its_own_image(tmp_path):
    """Dark images keep their pixels: no heat is drawn on values below a tenth."""
    levels = [3, 24, 10, 17]
    images = [_write(tmp_path / f"in/{level}.png", level) for level in levels]
    predict_files(_predictor(), images, tmp_path / "out", batch_size=3)
    for level in levels:
        picture = read_image(tmp_path / f"out/overlays/{level}.png")
        assert (picture[100:150, 100:150] == level).all()


def test_the_overview_shows_the_highest_scores_first(tmp_path):
    """Dark images keep their level: the first row of tiles tells in which order they are."""
    levels = [3, 24, 10, 17]
    images = [_write(tmp_path / f"in/{level}.png", level) for level in levels]
    predict_files(_predictor(), images, tmp_path / "out")
    page = read_image(tmp_path / "out/overview.png")
    width = page.shape[1] / 4
    centres = [page[100, round(width * (i + 0.5)), 0] for i in range(4)]
    assert centres == sorted(levels, reverse=True)


def test_the_overview_is_one_page_of_any_number(tmp_path):
    images = [_write(tmp_path / f"in/{i:02d}.png", i) for i in range(26)]
    sizes = []
    for count in (24, 26):
        predict_files(_predictor(), images[:count], tmp_path / f"out{count}")
        sizes.append(read_image(tmp_path / f"out{count}/overview.png").shape)
    assert sizes[0] == sizes[1]


def test_overlays_can_be_left_out(images, tmp_path):
    predict_files(_predictor(), images, tmp_path / "out", overlays=False)
    assert list(_listing(tmp_path / "out")) == ["predictions.csv"]


# --- names


def test_overlay_names_keep_the_folders_that_tell_images_apart(tmp_path):
    paths = [tmp_path / name for name in ("x/good/000.png", "x/bad/000.png", "x/bad/001.png")]
    assert [str(name) for name in overlay_names(paths)] == [
        "good/000.png",
        "bad/000.png",
        "bad/001.png",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "a.jpg"],
        ["a.png", "a.jpg.png", "a.jpg"],
        ["a.jpg.png", "a.png", "a.jpg"],
        ["a.png"] * 5,
        ["a.png", "a.png.png", "a.png"],
        ["x/a.png", "a.png", "x/x/a.png"],
        ["a.b.png", "a.png", "a.b.c.png"],
    ],
)
def test_no_two_overlays_share_a_name(tmp_path, names):
    found = overlay_names([tmp_path / name for name in names])
    assert len(set(found)) == len(names)
    assert all(name.suffix == ".png" and not name.is_absolute() for name in found)
    assert all(".." not in name.parts for name in found)


def test_relative_and_absolute_paths_mix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = overlay_names([Path("a.png"), tmp_path / "b.png", Path("../other/a.png")])
    assert len(set(found)) == 3
    assert all(".." not in name.parts for name in found)


def test_a_jpg_beside_a_png_gets_its_own_overlay(tmp_path):
    images = [_write(tmp_path / "in/a.jpg", 51), _write(tmp_path / "in/a.png", 204)]
    predict_files(_predictor(), images, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/overlays").iterdir()) == [
        "a.png",
        "a.png.png",
    ]


# --- all or nothing


def test_an_image_that_cannot_be_read_costs_no_other_its_score(images, tmp_path):
    """The unreadable ones come first, last and between two of a batch."""
    damaged = [tmp_path / f"in/x{i}.png" for i in range(4)]
    for path in damaged:
        path.write_bytes(images[0].read_bytes()[:60])
    missing = tmp_path / "in/gone.png"
    listed = [damaged[0], images[0], damaged[1], damaged[2], images[1], missing, damaged[3]]
    out = tmp_path / "out"
    rows = predict_files(_predictor(), listed, out, batch_size=2)
    assert [row.image for row in rows] == [str(path) for path in listed]
    assert [row.verdict for row in rows] == [None, "OK", None, None, "NG", None, None]
    assert all((row.score is None) == (row.error is not None) for row in rows)
    assert "gone.png: no such file" in rows[5].error
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["a.png", "b.png"]
    assert (out / "overview.png").is_file()
    with (out / "predictions.csv").open(newline="", encoding="utf-8-sig") as file:
        table = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in table] == [row.error is not None for row in rows]


def test_a_folder_of_unreadable_images_leaves_the_output_as_it_was(images, tmp_path):
    predict_files(_predictor(), images, tmp_path / "out")
    for path in images:
        path.write_bytes(b"")
    with unchanged(tmp_path), pytest.raises(DataError, match="none of 2 images was scored"):
        predict_files(_predictor(), images, tmp_path / "out")


def test_an_interruption_leaves_nothing_either(images, tmp_path):
    def stop(done, total, name):
        raise KeyboardInterrupt

    before = _listing(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        predict_files(_predictor(), images, tmp_path / "out", report=stop)
    assert _listing(tmp_path) == before


def test_an_image_of_a_size_the_artifact_refuses_has_an_error(images, tmp_path):
    camera = replace(fake_spec(32, 32), network=NetworkSpec(16, 16))
    images.append(_write(tmp_path / "in/c.png", 9, (32, 40)))
    rows = predict_files(Predictor(FakeRuntime(camera)), images, tmp_path / "out")
    assert [row.error is None for row in rows] == [True, True, False]
    assert "40x32 pixels" in rows[2].error


def test_no_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="none were passed"):
        predict_files(_predictor(), [], tmp_path / "out")
    assert _listing(tmp_path) == {}


@pytest.mark.parametrize("tables", [("csv", "csv"), ("json", "csv"), ("csv", "json")])
def test_a_second_run_does_not_mix_with_the_first(images, tmp_path, tables):
    out = tmp_path / "out"
    nested = _write(tmp_path / "in/deep/d.png", 7)
    predict_files(_predictor(), [*images, nested], out, table=tables[0])
    (out / "overlays/mine.png").write_bytes(b"of the user")
    (out / "notes.txt").write_text("of the user")
    other = _write(tmp_path / "in/c.png", 9)
    predict_files(_predictor(0.1), [images[0], other], out, table=tables[1])
    assert set(_listing(out)) == {
        ".pictures.json", "notes.txt", "overlays", "overlays/a.png", "overlays/c.png",
        "overlays/mine.png", "overview.png", f"predictions.{tables[1]}",
    }  # fmt: skip


def _pictures(out: Path) -> set[str]:
    return {path.relative_to(out / "overlays").as_posix() for path in (out / "overlays").rglob("*")}


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
@pytest.mark.parametrize("table", ["csv", "json"])
@pytest.mark.parametrize("name", [b"k\xe4se.png", b"=1.png", b"'1.png", b"a\nb.png", b"\\xe4.png"])
def test_a_table_need_not_lead_back_to_its_pictures(images, tmp_path, monkeypatch, table, name):
    """A table holds no bytes that are no UTF-8, and guards a name that looks like a formula."""
    out = tmp_path / "out"
    odd = _write(tmp_path / "in/odd.png", 7).rename(tmp_path / "in" / os.fsdecode(name))
    monkeypatch.chdir(tmp_path / "in")
    predict_files(_predictor(), [Path(odd.name), images[1]], out, table=table)
    assert len(_pictures(out)) == 2
    predict_files(_predictor(), images[:1], out, table=table)
    assert _pictures(out) == {"a.png"}


def test_relative_names_are_those_of_the_folder_that_the_run_was_in(images, tmp_path, monkeypatch):
    out, far = tmp_path / "out", _write(tmp_path / "far/away/d.png", 7)
    monkeypatch.chdir(tmp_path / "in")
    predict_files(_predictor(), ["a.png", far], out)
    assert _pictures(out) == {"in", "in/a.png", "far", "far/away", "far/away/d.png"}
    monkeypatch.chdir(far.parent)
    predict_files(_predictor(), ["d.png"], out)
    assert _pictures(out) == {"d.png"}


def test_a_picture_of_the_user_is_neither_removed_nor_replaced(images, tmp_path):
    out = tmp_path / "out"
    predict_files(_predictor(), images, out)
    (out / "overlays/b.png").write_bytes(b"with remarks of the user")
    predict_files(_predictor(), images[:1], out)
    assert _pictures(out) == {"a.png", "b.png"}
    assert (out / "overlays/b.png").read_bytes() == b"with remarks of the user"
    for name in ("overlays/b.png", "overlays/c.png"):
        (out / name).write_bytes(b"of the user")
        image = _write(tmp_path / "in" / Path(name).name, 9)
        with unchanged(out), pytest.raises(OutputError, match=rf"{name}: exists and was not"):
            predict_files(_predictor(), [image], out)


def test_an_overview_of_the_user_is_not_taken_for_an_earlier_one(images, tmp_path):
    predict_files(_predictor(), images, tmp_path / "out", overlays=False)
    (tmp_path / "out/overview.png").write_bytes(b"of the user")
    with unchanged(tmp_path / "out"), pytest.raises(OutputError, match=r"overview\.png: exists"):
        predict_files(_predictor(), images, tmp_path / "out")


def test_pictures_that_a_crash_kept_are_removed_later(images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict_files(_predictor(), images, out)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_remove", lambda output, names: None)
        predict_files(_predictor(), images[:1], out)
    assert _pictures(out) == {"a.png", "b.png"}
    predict_files(_predictor(), images[:1], out)
    assert _pictures(out) == {"a.png"}


@pytest.mark.parametrize("text", ["", "[]", '{"a.png": "x"}', "[" * 5000])
def test_a_record_that_is_damaged_removes_nothing(images, tmp_path, text):
    out = tmp_path / "out"
    predict_files(_predictor(), images, out)
    (out / ".pictures.json").write_text(text)
    with unchanged(out), pytest.raises(OutputError, match=r"\.pictures\.json: exists and was not"):
        predict_files(_predictor(), images[:1], out)


def test_a_record_does_not_lead_out_of_its_folder(images, tmp_path):
    out, mine = tmp_path / "out", tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    predict_files(_predictor(), images, out)
    names = ["../mine.png", str(mine), "overlays/../../mine.png", "a\0b.png"]
    (out / ".pictures.json").write_text(json.dumps(dict.fromkeys(names, 4)))
    predict_files(_predictor(), images, out, overlays=False)
    assert mine.read_bytes() == b"mine"


def test_a_name_with_a_zero_byte_costs_no_other_image_its_score(images, tmp_path):
    rows = predict_files(_predictor(), [images[0], "a\0b.png"], tmp_path / "out")
    assert [row.error is None for row in rows] == [True, False]


def test_a_full_disk_is_said_of_the_picture_that_stays(images, tmp_path, monkeypatch):
    """The overview was named below a temporary folder that is gone when the message is read."""
    write = module.write_png

    def full(path, image):
        if path.name == "overview.png":
            monkeypatch.setattr(Image.Image, "save", _find_no_room)
        write(path, image)

    monkeypatch.setattr(module, "write_png", full)
    with pytest.raises(OSError, match="No space left") as refused:
        predict_files(_predictor(), images, tmp_path / "out")
    assert refused.value.filename == str(tmp_path / "out/overview.png")
    assert not (tmp_path / "out").exists()


def _find_no_room(*arguments, **named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_second_run_without_overlays_leaves_none_of_the_first(images, tmp_path):
    predict_files(_predictor(), images, tmp_path / "out")
    predict_files(_predictor(), images[:1], tmp_path / "out", overlays=False)
    assert set(_listing(tmp_path / "out")) == {"predictions.csv"}


def test_the_overview_takes_overlays_beyond_pillows_limit(tmp_path, monkeypatch):
    image = _write(tmp_path / "large.png", 51, (300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    predict_files(_predictor(), [image], tmp_path / "out")
    assert (tmp_path / "out/overview.png").is_file()
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "out/overlays/large.png")


def test_only_a_batch_of_images_is_held(tmp_path, monkeypatch):
    """A folder of a shift's images must not have to fit into memory."""
    images = [_write(tmp_path / f"in/{i}.png", i) for i in range(9)]
    read, done, ahead = Predictor.read, [], []

    def counting(predictor, path):
        ahead.append(1)
        return read(predictor, path)

    monkeypatch.setattr(Predictor, "read", counting)

    def report(number, total, name):
        done.append(number)
        assert len(ahead) - number < 4

    predict_files(_predictor(), images, tmp_path / "out", batch_size=4, report=report)
    assert done == list(range(1, 10))


# ---------------------------------------------------------------------------- nothing is lost


def test_a_move_that_fails_leaves_no_part_of_the_output(images, tmp_path):
    (tmp_path / "out/predictions.csv").mkdir(parents=True)
    with pytest.raises((OSError, OutputError), match=r"predictions\.csv"):
        predict_files(_predictor(), images, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]


@pytest.mark.parametrize("name", ["overview.png", "predictions.csv", "overlays/a.png"])
def test_files_of_others_are_not_replaced(images, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with unchanged(tmp_path), pytest.raises(OutputError, match="was not written by this command"):
        predict_files(_predictor(), images, tmp_path / "out")


def test_text_is_taken_for_a_path(images, tmp_path):
    image = str(images[0])
    rows = predict_files(_predictor(), [image], str(tmp_path / "out"))
    assert rows[0].image == image
    assert (tmp_path / "out/predictions.csv").is_file()
    with pytest.raises(DataError, match="one path, expected a list"):
        predict_files(_predictor(), image, tmp_path / "out")


def test_a_second_run_into_the_same_folder_is_refused(images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with (
        locked(out / "predictions"),
        pytest.raises(OutputError, match=rf"^{out}: process \d+ is writing it"),
    ):
        predict_files(_predictor(), images, out)
    assert list(out.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
@pytest.mark.parametrize("table", ["csv", "json"])
def test_a_name_that_is_no_utf_8_loses_nothing(tmp_path, table):
    name = os.fsdecode(b"k\xe4se \x1b[2J.png")
    image = _write(tmp_path / "in/plain.png", 51).rename(tmp_path / "in" / name)
    predict_files(_predictor(), [image], tmp_path / "out", table=table)
    text = (tmp_path / f"out/predictions.{table}").read_text("utf-8-sig")
    if table == "json":
        assert json.loads(text)[0]["image"] == str(image)
    else:
        assert r"k\xe4se" in text
    assert (tmp_path / "out/overview.png").is_file()
