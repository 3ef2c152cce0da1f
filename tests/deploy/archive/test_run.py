"""An archive is scored once, whatever happens to a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pip install 'destseg-deploy[archive]'")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from pyarrow import parquet as pq

from destseg_deploy import load
from destseg_deploy.archive import parts as parts_module
from destseg_deploy.archive import run as run_module
from destseg_deploy.archive.answers import Scorer, Work, decode_map, encode_map
from destseg_deploy.archive.options import ArchiveOptions
from destseg_deploy.archive.run import predict_archive
from destseg_deploy.data.images import read_image
from destseg_deploy.errors import DataError, OutOfMemoryError, OutputError
from destseg_deploy.locks import locked
from destseg_deploy.predict_files import predict_files
from destseg_deploy.predictor import Predictor
from destseg_deploy.thresholds import by_hand, set_threshold
from tests.deploy.archive.cases import write_image, write_model
from tests.unchanged import unchanged

LEVELS = [3, 250, 128, 40, 200, 90, 127, 129]


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(tmp_path / "red-fp32.onnx")


@pytest.fixture
def images(tmp_path) -> Path:
    for i, level in enumerate(LEVELS):
        write_image(tmp_path / f"in/{i}.png", level)
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Chunks of two images, and parts of four."""
    monkeypatch.setattr(run_module, "CHUNK", 2)
    monkeypatch.setattr(parts_module, "MOST_ROWS", 4)


def rows(folder: Path) -> list[dict]:
    parts = sorted(folder.glob("part-*"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def stopping(after: int):
    """Return a report that ends a run as Ctrl-C does."""

    def report(done, total, remark):
        if done >= after:
            raise KeyboardInterrupt

    return report


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """What the predictor reads from now on."""
    seen, read = [], Predictor.read

    def reading(predictor, path, content=None):
        seen.append(Path(str(path)).name)
        return read(predictor, path, content)

    monkeypatch.setattr(Predictor, "read", reading)
    return seen


def test_the_parts_hold_what_predict_answers(model, images, tmp_path):
    out = tmp_path / "out"
    outcome = predict_archive(Work(model), [str(images)], out)
    assert (outcome.counts.images, outcome.counts.ng, outcome.counts.errors) == (8, 4, 0)
    with load(model) as predictor:
        wanted = predict_files(predictor, sorted(images.iterdir()), tmp_path / "csv")
    found = {row["path"]: row for row in rows(out)}
    assert len(found) == len(rows(out)) == 8
    for row in wanted:
        one = found[row.image]
        assert one["score"] == np.float32(row.score)
        assert one["normalized_score"] == np.float32(row.normalized_score)
        assert (one["verdict"], one["error"]) == (row.verdict, None)
        assert one["time"].tzinfo is not None
    assert sorted(path.name for path in out.iterdir()) == [
        "part-000001.parquet",
        "part-000002.parquet",
    ]


def test_a_part_says_what_its_answers_were_made_with(model, images, tmp_path):
    predict_archive(Work(model), [str(images)], tmp_path / "out")
    said = json.loads(pq.read_schema(tmp_path / "out/part-000001.parquet").metadata[b"destseg"])
    spec = json.loads(model.with_suffix(".json").read_text())
    assert said["artifact"] == spec["artifact"]["sha256"]
    assert (said["threshold"], said["maps"], said["format"]) == (0.5, None, 1)


def test_an_interrupted_run_goes_on_and_reads_no_answered_image(model, images, tmp_path, reads):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_archive(Work(model), [str(images)], out, report=stopping(6))
    assert len(rows(out)) == 6, "also those that waited for their part to be full"
    assert len(reads) == 6
    reads.clear()
    outcome = predict_archive(Work(model), [str(images)], out)
    assert sorted(reads) == ["6.png", "7.png"]
    assert outcome.new == 2
    assert sorted(Path(row["path"]).name for row in rows(out)) == [f"{i}.png" for i in range(8)]
    reads.clear()
    with unchanged(out):
        assert predict_archive(Work(model), [str(images)], out).new == 0
    assert reads == []


def test_new_images_are_added(model, images, tmp_path):
    predict_archive(Work(model), [str(images)], tmp_path / "out")
    write_image(images / "later.png", 7)
    assert predict_archive(Work(model), [str(images)], tmp_path / "out").new == 1
    assert len(rows(tmp_path / "out")) == 9


def test_an_image_that_is_named_twice_is_scored_once(model, images, tmp_path):
    sources = [str(images), str(images / "0.png"), os.path.relpath(images)]
    assert predict_archive(Work(model), sources, tmp_path / "out").new == 8


def test_a_broken_image_is_a_row_with_its_error(model, images, tmp_path, reads):
    (images / "1.png").write_bytes(b"no image")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"in/{i}.png\n" for i in (0, 1, 2)) + "in/gone.png\n")
    outcome = predict_archive(Work(model), [str(listed)], tmp_path / "out")
    found = {Path(row["path"]).name: row for row in rows(tmp_path / "out")}
    assert (outcome.counts.images, outcome.counts.errors) == (4, 2)
    assert outcome.counts.first in {found["1.png"]["error"], found["gone.png"]["error"]}
    assert "not an image" in found["1.png"]["error"]
    assert "no such file" in found["gone.png"]["error"]
    assert found["1.png"]["score"] is None
    assert found["2.png"]["verdict"] == "NG"
    reads.clear()
    predict_archive(Work(model), [str(listed)], tmp_path / "out")
    assert reads == [], "an error is an answer"


def test_an_image_without_the_memory_for_it_stops_no_run(model, images, tmp_path, monkeypatch):
    read = Predictor.read

    def reading(predictor, path, content=None):
        if "3.png" in str(path):
            raise OutOfMemoryError("3.png: not enough memory")
        return read(predictor, path, content)

    monkeypatch.setattr(Predictor, "read", reading)
    counts = predict_archive(Work(model), [str(images)], tmp_path / "out").counts
    assert (counts.images, counts.errors) == (8, 1)


def test_images_behind_uris_are_scored(model, images, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{(images / '4.png').as_uri()}\n{(images / 'gone.png').as_uri()}\n")
    predict_archive(Work(model), [str(listed)], tmp_path / "out")
    there, gone = sorted(rows(tmp_path / "out"), key=lambda row: row["error"] is not None)
    assert there["score"] == np.float32(200) / np.float32(255)
    assert "gone.png: no such file" in gone["error"]


def test_maps_are_kept_at_the_chosen_size(model, tmp_path):
    image = write_image(tmp_path / "in/a.png", 200)
    options = ArchiveOptions(maps=8)
    predict_archive(Work(model), [str(image)], tmp_path / "out", options=options)
    (row,) = rows(tmp_path / "out")
    found = decode_map(row["map"])
    assert found.shape == (8, 8)
    np.testing.assert_allclose(found, 200 / 255, atol=1 / 65535)
    assert np.abs(found - 201 / 255).min() > 1 / 65535, "control: another grey level is seen"


def test_a_map_that_rounding_lifted_above_1_stays_white():
    ends = np.array([[-9e-6, 1 + 9e-6]], np.float32)
    assert decode_map(encode_map(ends, 2)).tolist() == [[0.0, 1.0]]


def test_without_a_threshold_there_is_no_verdict(images, tmp_path):
    model = write_model(tmp_path / "other.onnx", limit=None)
    predict_archive(Work(model), [str(images)], tmp_path / "out")
    assert {(row["verdict"], row["normalized_score"]) for row in rows(tmp_path / "out")} == {
        (None, None)
    }


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
def test_a_name_that_is_no_utf_8_is_scored_once(model, tmp_path):
    image = write_image(tmp_path / "in/plain.png", 51)
    image.rename(tmp_path / "in" / os.fsdecode(b"k\xe4se.png"))
    assert predict_archive(Work(model), [str(tmp_path / "in")], tmp_path / "out").new == 1
    assert rows(tmp_path / "out")[0]["path"].endswith(r"k\xe4se.png")
    assert predict_archive(Work(model), [str(tmp_path / "in")], tmp_path / "out").new == 0


# ---------------------------------------------------------------------------- refusals


def test_answers_of_two_models_never_mix(model, images, tmp_path):
    out = tmp_path / "out"
    predict_archive(Work(model), [str(images)], out)
    other = write_model(tmp_path / "other-fp32.onnx", bias=0.1)
    with (
        unchanged(out),
        pytest.raises(OutputError, match=r"are of red-fp32\.onnx .* this is other"),
    ):
        predict_archive(Work(other), [str(images)], out)
    with (
        unchanged(out),
        pytest.raises(OutputError, match="made with maps None, and this run has 8"),
    ):
        predict_archive(Work(model), [str(images)], out, options=ArchiveOptions(maps=8))
    set_threshold(model, by_hand(0.6))
    with unchanged(out), pytest.raises(OutputError, match=r"threshold 0\.5, and this run has 0\.6"):
        predict_archive(Work(model), [str(images)], out)


@pytest.mark.parametrize("content", [b"", b"PAR1 cut", None])
def test_a_part_that_is_not_ours_or_damaged_is_refused(model, images, tmp_path, content):
    import pyarrow as pa

    part = tmp_path / "out/part-000001.parquet"
    part.parent.mkdir()
    if content is None:
        pq.write_table(pa.table({"path": ["a"]}), part)
    else:
        part.write_bytes(content)
    wanted = "cannot be read" if content is not None else "was not written by this command"
    with unchanged(tmp_path / "out"), pytest.raises(OutputError, match=wanted):
        predict_archive(Work(model), [str(images)], part.parent)


def test_two_runs_do_not_share_a_folder(model, images, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out/predictions"), pytest.raises(OutputError, match="is writing it"):
        predict_archive(Work(model), [str(images)], tmp_path / "out")


def test_no_images_leave_no_folder(model, tmp_path):
    (tmp_path / "in").mkdir()
    with unchanged(tmp_path), pytest.raises(DataError, match="no images there"):
        predict_archive(Work(model), [str(tmp_path / "in")], tmp_path / "out")


FULL = """
import resource, sys
from destseg_deploy.archive import parts, run
parts.MOST_ROWS = run.CHUNK = 4
from destseg_deploy.cli.predict import predict
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
predict()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of a file's size")
def test_a_full_disk_is_one_line_and_nothing_is_lost(model, images, tmp_path):
    """The limit takes the lock file, and no part."""
    out = tmp_path / "out"
    predict_archive(Work(model), [str(images / "0.png")], out)
    command = ["predict", str(model), str(images), "--format", "parquet", "--output", str(out)]
    failed, done = (
        subprocess.run(
            [sys.executable, "-c", FULL, limit, *command[1:]], capture_output=True, text=True
        )
        for limit in ("1000", "1000000")
    )
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert "part-000002.parquet: it cannot be written (File too large)" in line
    assert "the same command goes on" in line
    assert done.returncode == 0, done.stderr
    assert len({row["path"] for row in rows(out)}) == len(rows(out)) == 8
    assert all(path.name.startswith("part-") for path in out.iterdir()), "no temporary file"


def test_a_part_is_written_when_its_rows_are_old_or_large(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "OLDEST_S", 0.0)
    predict_archive(Work(model), [str(images)], tmp_path / "old")
    assert len(list((tmp_path / "old").iterdir())) == 4
    monkeypatch.setattr(parts_module, "OLDEST_S", 60.0)
    monkeypatch.setattr(parts_module, "MOST_BYTES", 1)
    options = ArchiveOptions(maps=4)
    predict_archive(Work(model), [str(images)], tmp_path / "large", options=options)
    assert len(list((tmp_path / "large").iterdir())) == 4


def test_only_a_batch_of_frames_is_held(model, images, monkeypatch):
    """Chunks are long on Ray; their frames must not be in memory together."""
    answered, read = [], Predictor.read
    answer = Scorer._answer

    def reading(predictor, path, content=None):
        assert len(held) - len(answered) <= predictor.spec.input.batch.opt
        held.append(path)
        return read(predictor, path, content)

    held: list[str] = []
    monkeypatch.setattr(Predictor, "read", reading)
    monkeypatch.setattr(Scorer, "_answer", lambda s, *a: (answered.append(1), answer(s, *a))[1])
    scorer = Work(model).open()
    assert len(scorer.answer([str(path) for path in images.iterdir()])) == 8
    scorer.close()
    assert read_image(images / "0.png")[0, 0, 0] == LEVELS[0]
