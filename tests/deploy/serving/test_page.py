"""The page in a real browser, served by the command: good and bad input, a saved threshold."""

import importlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import FileRecord, ModelSpec
from destseg_deploy.testing import FakeRuntime, fake_spec
from destseg_deploy.thresholds import by_hand
from tests.browser import complaints, requested, resize
from tests.deploy.serving.test_app import _huge_png

ROOT = Path(__file__).resolve().parents[3]
COMMAND = """
import importlib
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import ModelSpec
from destseg_deploy.testing import FakeRuntime
module = importlib.import_module("destseg_deploy.cli.page")
module.load = lambda artifact, **how: Predictor(FakeRuntime(ModelSpec.read(artifact)))
module.page()
"""
"""The command over the fake model, which is there at once; tests/house/test_network.py starts the
command with a real one."""

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "export", "benchmarks")),
    "OMP_NUM_THREADS": "1",
}


def _start(artifact: Path, *options: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", COMMAND, str(artifact), *options]
    return subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("served") / "fake-fp32.onnx"
    path.write_bytes(b"a model")
    replace(fake_spec(), artifact=FileRecord.of(path), threshold=by_hand(0.5)).write(path)
    return path


@pytest.fixture(scope="module")
def address(artifact) -> Iterator[str]:
    """The command serves while this module's tests run; a signal ends it quietly."""
    running = _start(artifact, "--port", "0", "--max-mib", "1")
    line = running.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), running.communicate()
    yield line.split()[0]
    assert running.poll() is None, "it must have survived all of this"
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 128 + signal.SIGTERM
    assert running.stderr.read() == ""
    running.stdout.close(), running.stderr.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, factor in (("dark.png", 0.4), ("bright.png", 1.0)):
        noise = (rng.integers(0, 256, (90, 120, 3)) * factor).astype(np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "words.txt").write_text("some words")
    (folder / "huge.png").write_bytes(_huge_png())
    with (folder / "large.bin").open("wb") as file:
        file.truncate(200 * 2**20)
    return folder


@pytest.fixture
def page(browser, address):
    resize(browser, 1280, 900)
    browser.get(address)
    complaints(browser), requested(browser)
    return browser


def _choose(page, *paths: Path) -> None:
    """Choose files and wait until all are answered."""
    results = "return results.length"
    wanted = page.execute_script(results) + len(paths)
    page.find_element("id", "files").send_keys("\n".join(map(str, paths)))
    end = time.monotonic() + 60
    while page.execute_script(results) < wanted:
        assert time.monotonic() < end, page.find_element("id", "busy").text
        time.sleep(0.05)
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def _results(page) -> list[str]:
    return [element.text for element in page.find_elements("css selector", "#results > *")]


def _type(page, name: str, value: object) -> None:
    page.execute_script(
        "const [field, value] = arguments; field.value = value;"
        "field.dispatchEvent(new Event('change'))",
        page.find_element("id", f"{name}-value"),
        str(value),
    )
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def test_images_get_their_score_and_verdict(page, address, artifact, pictures):
    files = [pictures / "dark.png", pictures / "bright.png"]
    _choose(page, *files)
    predictor = Predictor(FakeRuntime(ModelSpec.read(artifact)))
    scores = [float(predictor(file).score[0]) for file in files]
    found = page.execute_script("return results.map((result) => result.score)")
    assert found == scores[::-1], "the last one comes first"
    _type(page, "score", np.mean(scores))
    low, high = np.argsort(scores)
    shown = dict(zip(("bright.png", "dark.png"), _results(page), strict=True))
    assert shown[files[high].name].startswith("NG")
    assert shown[files[low].name].startswith("OK")
    assert page.find_element("id", "summary").text == "2 images: 1 OK, 1 NG"
    asked = requested(page)
    assert asked == [f"{address}api/look"] * 2
    assert complaints(page) == []


def test_a_canvas_shows_the_picture_and_its_outline(page, pictures):
    _choose(page, pictures / "bright.png")
    draw = """
        const done = arguments[1], [{ canvas, picture }] = results;
        drawPicture(canvas, picture, arguments[0], {outline: true}).then(() => {
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          done([...data].reduce((sum, value) => sum + value, 0));
        })"""
    plain, outlined = (page.execute_async_script(draw, limit) for limit in (1, 0.3))
    assert plain > 0
    assert outlined != plain


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("words.txt", "words.txt: not an image, it begins with b'some wor'. Expected PNG, JPEG"),
        ("huge.png", "huge.png: 30000x30000 pixels"),
        ("large.bin", "large.bin: 200 MiB, the limit is 1 MiB"),
    ],
)
def test_bad_input_is_one_clear_error_and_the_next_image_is_scored(page, pictures, name, words):
    _choose(page, pictures / name, pictures / "dark.png")
    after, error = _results(page)
    assert error.startswith(words)
    assert "\n" not in error
    assert "dark.png, 120" in after


def test_200_mb_past_the_page_are_refused_by_the_server(address, pictures):
    with (pictures / "large.bin").open("rb") as body:
        asked = urllib.request.Request(f"{address}api/look", body, {"Content-Length": 200 * 2**20})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked, timeout=60)
    with caught.value as answer:
        assert answer.status == 413
        assert b"which is the limit here" in answer.read()


def test_a_pasted_picture_is_scored(page, pictures):
    paste = """
        const done = arguments[0];
        document.createElement('canvas').toBlob((blob) => {
          const clipboard = new DataTransfer();
          clipboard.items.add(new File([blob], 'image.png', {type: 'image/png'}));
          document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: clipboard}));
          done();
        })"""
    page.execute_async_script(paste)
    end = time.monotonic() + 60
    while not _results(page) and time.monotonic() < end:
        time.sleep(0.05)
    assert "image.png, 300" in _results(page)[0]


def test_a_threshold_is_saved_into_the_spec_and_can_be_taken_back(page, artifact):
    _type(page, "score", 0.123)
    _type(page, "pixel", 0.2)
    page.find_element("id", "reset").click()
    assert page.find_element("id", "score-value").get_attribute("value") == "0.5"
    _type(page, "score", 0.123)
    _type(page, "pixel", 0.2)
    page.find_element("id", "save").click()
    end = time.monotonic() + 30
    while "Saved" not in page.find_element("id", "rule").text and time.monotonic() < end:
        time.sleep(0.05)
    assert page.find_element("id", "rule").text == "Saved: set by hand."
    saved = ModelSpec.read(artifact).threshold
    assert (saved.score, saved.pixel, saved.rule) == (0.123, 0.2, "set by hand")
    page.refresh()
    assert page.find_element("id", "score-value").get_attribute("value") == "0.123"


@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_screen(page, pictures, width):
    resize(page, width, 900)
    _choose(page, pictures / "words.txt", pictures / "dark.png")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_port_that_is_taken_is_named(address, artifact):
    port = address.rstrip("/").rpartition(":")[2]
    running = _start(artifact, "--port", port)
    out, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert (out, said.count("\n")) == ("", 1)
    assert f"port {port}: cannot listen there" in said


def test_without_the_extra_it_is_named(artifact, monkeypatch):
    from click.testing import CliRunner

    module = importlib.import_module("destseg_deploy.cli.page")
    runtime = FakeRuntime(ModelSpec.read(artifact))
    monkeypatch.setattr(module, "load", lambda artifact, **how: Predictor(runtime))
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(module.page, [str(artifact)])
    assert result.exit_code == 1
    assert "pip install 'destseg-deploy[page]'" in result.stderr
