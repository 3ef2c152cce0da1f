"""destseg-report says when its images were trained on; so did only destseg-evaluate."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from destseg_deploy.cli.report import report
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import TrainingRecord
from destseg_deploy.testing import FakeRuntime, fake_spec


@pytest.mark.parametrize("trained_on", ["good", "gone"])
def test_images_that_were_trained_on_are_remarked(tmp_path, monkeypatch, trained_on):
    for i in range(4):
        path = tmp_path / ("good", "dent")[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 40 + i, np.uint8)).save(path)
    record = TrainingRecord(data=str(tmp_path / trained_on), images=2)
    spec = replace(fake_spec(), training=record)
    module = importlib.import_module("destseg_deploy.cli.report")
    monkeypatch.setattr(module, "load", lambda artifact, **how: Predictor(FakeRuntime(spec)))
    output = tmp_path / "report.html"
    done = CliRunner().invoke(report, ["fake.onnx", str(tmp_path), "--output", str(output)])
    assert done.exit_code == 0, done.output
    words = "note: 2 of 4 images were trained on"
    assert (words in done.stderr) == (trained_on == "good")
    assert output.exists()
