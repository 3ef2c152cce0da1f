"""A whole run on tiles: what its checkpoint says, its threshold, and that it continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.errors import TrainingError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.torch_runtime import PyTorchRuntime
from destseg_deploy.spec import ModelSpec, RegionSpec, TilingSpec
from destseg_deploy.training import run
from destseg_deploy.training.recipe import Recipe
from destseg_deploy.training.setup import prepare
from tests.deploy.training.cases import LONGER, TINY, small_networks, small_options, train_small

TILED = replace(TINY, scale=0.75, overlap=16)
FRAME, WORKING = (120, 152), (90, 114)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of noise."""
    folder = tmp_path_factory.mktemp("tiles") / "plate"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, *FRAME, 3)).astype(np.uint8)
    for i, frame in enumerate(noise):
        Image.fromarray(frame).save(folder / f"{i}.png")
    return folder


def test_the_spec_says_what_a_frame_is_and_how_it_is_cut(frames: Path, tmp_path: Path) -> None:
    output, notes = tmp_path / "plate.safetensors", list[str]()
    recipe = replace(TILED, holdout=0.0)
    spec = train_small(frames, output, recipe, region="8,0,100,100", notify=notes.append)
    assert spec == ModelSpec.read(output)
    assert (spec.size, spec.network_size, spec.map_size) == (FRAME, (64, 64), WORKING)
    assert (spec.tiling, spec.region) == (TilingSpec(0.75, 16), RegionSpec(8, 0, 100, 100))
    assert spec.output.top_k == 6  # of a tile
    assert spec.max_batch * spec.grid.count <= 64
    assert Recipe(**spec.training.recipe) == recipe
    assert spec.training.images == 6
    # 8 samples of 6 frames: two crops of each.
    assert f"{output}: 2 crops of each frame, scaled to 114x90 pixels" in notes


def test_the_threshold_is_that_of_the_graph(frames: Path, tmp_path: Path) -> None:
    """The held-out frames are scored as the exported graph scores them: blended, and inside."""
    scored: list[tuple[ModelSpec, np.ndarray]] = []

    class Watched(PyTorchRuntime):
        def infer(self, images: np.ndarray) -> Prediction:
            prediction = super().infer(images)
            scored.append((self.spec, prediction.anomaly_map))
            return prediction

    output = tmp_path / "plate.safetensors"
    with mock.patch.object(run, "PyTorchRuntime", Watched):
        spec = train_small(frames, output, TILED, region="8,0,100,100")
    assert spec.threshold.images == len(spec.training.held_out) == len(scored) == 2
    for seen, anomaly_map in scored:
        assert (seen.tiling, seen.region) == (spec.tiling, spec.region)
        assert anomaly_map.shape == (1, *WORKING)
        assert anomaly_map[:, :70, 7:80].any()
        assert not anomaly_map[:, 80:].any()  # outside of the region


def test_a_region_without_tiles_makes_the_frame_the_input(frames: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, holdout=0.0)
    spec = train_small(frames, tmp_path / "plate.safetensors", recipe, region="8,0,100,100")
    assert (spec.size, spec.network_size, spec.map_size) == (FRAME, (64, 64), (64, 64))
    assert (spec.tiling, spec.region) == (None, RegionSpec(8, 0, 100, 100))


def test_both_loops_are_fed_the_same_tiles(frames: Path) -> None:
    with small_networks():
        lean, literal = (
            prepare(frames, TILED, small_options(literal=way)).source() for way in (False, True)
        )
    for one, other in zip(lean(0, 4), literal(0, 4), strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.shape == b.shape
            assert a.shape[2:] == (64, 64)
        # Noise is turned by two libraries, one of which rounds positions to 1/32 pixel.
        assert (one[1] - other[1]).abs().mean() < 5
    first, second = (next(lean(step, step + 1))[1] for step in (0, 1))
    assert (first - second).abs().mean() > 30  # control


def test_a_run_on_tiles_continues_with_the_same_bits(frames: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        if done == 15:
            raise Stop

    recipe = replace(LONGER, scale=0.75, overlap=16, holdout=0.0)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train_small(frames, whole, recipe)
    with pytest.raises(Stop):
        train_small(frames, parts, recipe, save_every=0, report=lambda s: stop(s.done))
    with pytest.raises(TrainingError, match=r"overlap 16, now 0"):
        train_small(frames, parts, replace(recipe, overlap=0))
    with pytest.raises(TrainingError, match=r"region None, now \{'x': 8"):
        train_small(frames, parts, recipe, region="8,0,100,100")
    notes: list[str] = []
    train_small(frames, parts, recipe, notify=notes.append)
    assert any("continuing after step" in note for note in notes)
    assert parts.read_bytes() == whole.read_bytes()
    train_small(frames, parts, recipe, notify=notes.append)
    assert "trained with these options before" in notes[-1]
