"""Every command that reads images can be told how many bits a camera has."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from destseg_bench.cli import bench
from destseg_deploy.cli import evaluate, predict, threshold, train
from destseg_export.cli import export

READS = {"data", "images", "labelled", "normal", "textures", "verify_images"}
WITHOUT = {"gpu"}
"""It starts the other commands with images that it draws; a category of one's own has 8 bits."""

COMMANDS = {
    **bench.commands,
    **export.commands,
    "export": export,
    **{one.name: one for one in (evaluate.evaluate, predict.predict, threshold.threshold)},
    "train": train.train,
}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_depth_can_be_stated_where_images_are_read(name):
    names = {param.name for param in COMMANDS[name].params}
    assert ("bit_depth" in names) == (bool(READS & names) and name not in WITHOUT)
