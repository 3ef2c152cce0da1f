"""destseg predict --format parquet."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="pip install 'destseg-deploy[archive]'")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from click.testing import CliRunner, Result
from pyarrow import parquet as pq

from destseg_deploy.cli.predict import predict
from tests.deploy.archive.cases import write_image, write_model
from tests.unchanged import unchanged


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "red-fp32.onnx")
    for level in (40, 200):
        write_image(tmp_path / f"in/{level}.png", level)
    return tmp_path


def run(*options: str) -> Result:
    return CliRunner().invoke(predict, ["red-fp32.onnx", "in", *options])


def test_a_folder_becomes_parts_and_the_command_says_how_many(place):
    done = run("--format", "parquet", "--maps", "8")
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert "2 images answered, " in done.stderr
    assert "1 NG, 0 errors; written to predictions" in done.stderr
    assert len(pq.read_table(place / "predictions")["map"][0].as_py()) > 50
    write_image(place / "in/later.png", 9)
    again = run("--format", "parquet", "--maps", "8")
    assert "3 images answered, 2 of them by earlier runs" in again.stderr


def test_images_without_a_score_give_status_1_in_one_line(place):
    (place / "in/broken.png").write_text("no image")
    done = run("--format", "parquet")
    assert done.exit_code == 1
    assert "1 of 3 images could not be scored" in done.stderr.splitlines()[-1]
    assert "broken.png" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--format", "parquet", "--overlays"], "--overlays is for the tables csv and json"),
        (["--format", "parquet", "--json"], "--json is for the tables csv and json"),
        (["--maps", "8"], "--maps is for archives"),
        (["--format", "csv", "--on", "ray"], "--on is for archives"),
        (["--on", "there"], "expected here, ray, ray://auto or ray://HOST:PORT"),
        (["--format", "parquet", "--workers", "2"], "Pass --on ray, too"),
        (["--format", "parquet", "--maps", "0"], "Invalid value for '--maps'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(place, options, wanted):
    with unchanged(place):
        done = run(*options)
    assert done.exit_code == 2
    assert wanted in done.stderr


@pytest.mark.parametrize("size", ["0", "-3", "17"])
def test_a_batch_that_the_model_does_not_take_is_one_line(place, size):
    with unchanged(place):
        done = run("--format", "parquet", "--batch-size", size)
    assert done.exit_code == 1
    assert f"batch_size: {size}, expected 1 to 16" in done.stderr


def test_a_missing_package_is_one_line(place, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    done = run("--format", "parquet")
    assert done.exit_code == 1
    assert "pip install 'destseg-deploy[archive]'" in done.stderr
    assert not (place / "predictions").exists()


def test_small_folders_get_their_pictures_as_before(place):
    assert run().exit_code == 0
    assert {path.name for path in (place / "predictions").iterdir()} == {
        ".pictures.json", "overlays", "overview.png", "predictions.csv",
    }  # fmt: skip
