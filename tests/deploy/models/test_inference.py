"""The export twin: the same answers as the steps done one by one on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from destseg_deploy.data.resize import resize_image
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import (
    InferenceGraph,
    PixelResize,
    normalize_pixels,
    top_k_mean,
)

NETWORK = (64, 64)
TOP_K = 6
Bytes = NDArray[np.uint8]
Answer = tuple[NDArray[np.float32], NDArray[np.float32]]


def camera(height: int, width: int, count: int = 3) -> Bytes:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def run(graph: InferenceGraph, images: Bytes) -> Answer:
    with torch.inference_mode():
        anomaly_map, score = graph(torch.from_numpy(images))
    return anomaly_map.numpy(), score.numpy()


def plainly(model: DeSTSeg, images: Bytes, map_size: tuple[int, int] = NETWORK) -> Answer:
    """Resize, normalise, run, upsample and sort on the host, as the reference does."""
    resized = np.stack([resize_image(image, NETWORK) for image in images]).astype(np.float64)
    values = (resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = torch.from_numpy(values.transpose(0, 3, 1, 2).copy()).float()
    with torch.no_grad():
        segmentation = model(x)[0]
    full = functional.interpolate(segmentation, NETWORK, mode="bilinear", align_corners=False)
    score = np.sort(full.numpy().reshape(len(images), -1), axis=1)[:, -TOP_K:].mean(axis=1)
    if map_size != NETWORK:
        full = functional.interpolate(full, map_size, mode="bilinear", align_corners=False)
    return full.numpy()[:, 0], score


def same(a: Answer, b: Answer, tolerance: float = 2e-4) -> bool:
    """Tell whether answers agree to float32: this random network's noise is about 4e-5."""
    return all(
        x.shape == y.shape and float(np.abs(x - y).max()) < tolerance
        for x, y in zip(a, b, strict=True)
    )


# ---------------------------------------------------------------------------- the whole graph


def test_a_call_makes_no_constant(
    model: DeSTSeg, frames: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each would be copied from the host, and a CUDA graph cannot record the copy."""
    graph = InferenceGraph(model, network_size=NETWORK, input_size=(50, 41), top_k=TOP_K)
    expected = run(graph, camera(50, 41))
    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("a constant is made"))
    with torch.inference_mode():
        found = graph(torch.zeros(3, 50, 41, 3, dtype=torch.uint8))
    assert found[0].shape == expected[0].shape


def test_everything_of_the_graph_moves_with_it(model: DeSTSeg) -> None:
    graph = InferenceGraph(model, network_size=NETWORK, input_size=(50, 41), top_k=TOP_K)
    buffers = dict(graph.named_buffers(recurse=False))
    assert set(buffers) == {"mean", "std"}
    saved = [name for name in graph.state_dict() if not name.startswith("model.")]
    assert saved == ["resize.rows", "resize.columns"], "no new tensor in a checkpoint"


def test_frames_of_the_networks_size(model: DeSTSeg, frames: Bytes) -> None:
    result = run(InferenceGraph(model, network_size=NETWORK, top_k=TOP_K), frames)
    assert result[0].shape == (3, 64, 64)
    assert result[1].shape == (3,)
    assert result[0].dtype == result[1].dtype == np.float32
    assert result[0].std() > 0.05  # not flat
    assert same(result, plainly(model, frames))


@pytest.mark.parametrize(("height", "width"), [(96, 160), (160, 96), (50, 41)])
def test_frames_of_a_cameras_size(height: int, width: int, model: DeSTSeg) -> None:
    images = camera(height, width)
    graph = InferenceGraph(model, network_size=NETWORK, input_size=(height, width), top_k=TOP_K)
    assert same(run(graph, images), plainly(model, images))
    shifted = np.roll(images, 1, axis=2)
    assert not same(run(graph, shifted), plainly(model, images), tolerance=0.1)


@pytest.mark.parametrize("map_size", [(96, 160), (32, 48)])
def test_maps_of_another_size(map_size: tuple[int, int], model: DeSTSeg, frames: Bytes) -> None:
    """The score stays that of the network's size."""
    graph = InferenceGraph(model, network_size=NETWORK, map_size=map_size, top_k=TOP_K)
    result = run(graph, frames)
    assert result[0].shape == (3, *map_size)
    assert same(result, plainly(model, frames, map_size))
    network_sized = run(InferenceGraph(model, network_size=NETWORK, top_k=TOP_K), frames)
    assert (result[1] == network_sized[1]).all()


def test_an_input_of_the_networks_size_is_not_resized(model: DeSTSeg) -> None:
    graph = InferenceGraph(model, network_size=NETWORK, input_size=NETWORK, top_k=TOP_K)
    assert not list(graph.resize.buffers())


def test_one_by_one_is_as_all_at_once(model: DeSTSeg) -> None:
    images = camera(96, 160, 4)
    graph = InferenceGraph(model, network_size=NETWORK, input_size=(96, 160), top_k=TOP_K)
    together = run(graph, images)
    singles = [run(graph, images[i : i + 1]) for i in range(4)]
    maps, scores = (np.concatenate(part) for part in zip(*singles, strict=True))
    assert same(together, (maps, scores))
    assert not same(together, (maps[::-1], scores[::-1]), tolerance=0.1)  # images differ


def test_bgr_gives_another_answer(model: DeSTSeg, frames: Bytes) -> None:
    graph = InferenceGraph(model, network_size=NETWORK, top_k=TOP_K)
    swapped = np.ascontiguousarray(frames[..., ::-1])
    assert not same(run(graph, swapped), run(graph, frames), tolerance=0.1)


def test_the_score_depends_on_k(model: DeSTSeg, frames: Bytes) -> None:
    scores = [
        run(InferenceGraph(model, network_size=NETWORK, top_k=k), frames)[1] for k in (1, 6, 64)
    ]
    assert (scores[0] > scores[1]).all()
    assert (scores[1] > scores[2]).all()


def test_the_graph_runs_in_eval_mode() -> None:
    """A batch of one would not even run in train mode, and statistics would move."""
    torch.manual_seed(0)
    net = DeSTSeg().train()
    graph = InferenceGraph(net, network_size=NETWORK, top_k=TOP_K)
    assert not any(module.training for module in graph.model.modules())
    run(graph, camera(64, 64, 1))


# ---------------------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((96, 160), (64, 64)),
        ((64, 64), (64, 96)),  # one side equal, one up
        ((480, 640), (256, 256)),
        ((33, 47), (64, 96)),
    ],
)
def test_pixel_resize_gives_the_bits_of_the_resize(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    images = camera(*source, 2)
    module = PixelResize(source, target)
    result = module(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    expected = np.stack([resize_image(image, target) for image in images])
    assert (result.permute(0, 2, 3, 1).numpy() == expected).all()


def test_an_ordinary_resize_gives_other_pixels() -> None:
    pixels = torch.from_numpy(camera(96, 160)).permute(0, 3, 1, 2).float()
    plain = functional.interpolate(pixels, NETWORK, mode="bilinear", align_corners=False)
    assert float((PixelResize((96, 160), NETWORK)(pixels) - plain).abs().max()) > 50


def test_normalize_pixels_is_imagenets() -> None:
    pixels = torch.tensor([0.0, 127.0, 255.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    result = normalize_pixels(pixels)
    for c, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = [(value / 255 - mean) / std for value in (0, 127, 255)]
        assert np.allclose(result[0, c, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("k", [1, 7, 100, 256])
def test_top_k_mean_is_that_of_the_sorted_values(k: int) -> None:
    maps = np.random.default_rng(0).random((3, 16, 16), np.float32)
    maps[1, 3:9] = 0.5  # ties
    expected = [np.sort(m.ravel())[::-1][:k].mean(dtype=np.float64) for m in maps]
    result = top_k_mean(torch.from_numpy(maps), k).numpy()
    assert result.shape == (3,)
    assert np.abs(result - expected).max() < 1e-6
    if k < 256:
        least = [np.sort(m.ravel())[:k].mean(dtype=np.float64) for m in maps]
        assert np.abs(result - least).max() > 0.1
